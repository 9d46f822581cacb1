"""Process vectorisation: rows dealt to worker processes, arrays in shared memory, crashes survived.

``make("sim.maniskill:ManiSkillEnv", ids=[...], num_envs=8)`` is what every ``configs/env/*.yaml`` names. A worker
that dies or hangs is restarted and its rows are reported as truncated; nothing waits for ever. Actions are clipped
to the spec's bounds by the adapter, not here.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from sim.serial import BatchedEnv, SerialVectorEnv, Step, load_adapter, merge_specs
from sim.shared_memory import Block, Layout
from sim.worker import Worker, WorkerLost
from vla_rl.environment import Observation, StartState, VlaVectorEnv, row_mask, row_seeds, row_starts
from vla_rl.errors import UserError

log = logging.getLogger("vla_rl.sim")


def make(
    adapter: str,
    ids: str | Sequence[str],
    num_envs: int = 1,
    num_workers: int | None = None,
    *,
    num_threads: int = 1,
    timeout_s: float = 120.0,
    max_restarts: int = 10,
    **kwargs: Any,
) -> VlaVectorEnv:
    """A batch of simulated environments.

    Args:
        adapter: ``module:Class`` of a ``SimEnv``; built as ``Class(id, **kwargs)``.
        ids: one id, or several: row i plays ``ids[i % len(ids)]``.
        num_envs: B.
        num_workers: processes; 0 = in this one; None = as many as there are cores, at most B.
        num_threads: that step the rows of this process, with ``num_workers=0``: for simulators that step without Python's
            lock (robosuite), a fifth faster than as many processes, but without their protection from crashes.
        timeout_s: a worker silent for longer is replaced (it may take longer to start).
        max_restarts: replacements before giving up.
        **kwargs: for the adapter.

    Raises:
        UserError: unknown adapter or id, or tasks of different shapes.
    """
    names = [ids] if isinstance(ids, str) else list(ids)
    if not names:
        raise UserError("env.ids is empty: name at least one environment")
    if num_envs < 1:
        raise UserError(f"env.num_envs={num_envs}: needs at least 1")
    if num_workers is not None and num_workers < 0:
        raise UserError(f"env.num_workers={num_workers}: 0 = in this process, null = one per core")
    if num_threads < 1 or (num_threads > 1 and num_workers != 0):
        raise UserError(
            f"env.num_threads={num_threads}: at least 1, and more than that only with env.num_workers=0"
        )
    load_adapter(adapter)
    rows = [names[i % len(names)] for i in range(num_envs)]
    if len(names) > num_envs:
        log.warning("env.num_envs=%d: %s get no row", num_envs, ", ".join(names[num_envs:]))
    if num_workers is None:
        num_workers = len(os.sched_getaffinity(0))
    if num_workers == 0:
        return SerialVectorEnv(adapter, rows, kwargs, num_threads)
    return ProcessVectorEnv(adapter, rows, kwargs, min(num_workers, num_envs), timeout_s, max_restarts)


class ProcessVectorEnv(BatchedEnv):
    """Rows in worker processes (one thread each); see ``make``.

    A row whose worker was replaced has lost its episode: the next ``step`` reports it as truncated, with reward 0,
    its last observation again and ``info["worker_restarted"]`` (bool [B]); ``look`` shows its last picture.
    """

    def __init__(
        self,
        adapter: str,
        rows: list[str],
        kwargs: dict[str, Any],
        num_workers: int,
        timeout_s: float,
        max_restarts: int,
    ) -> None:
        self.closed = True  # until it is complete: gymnasium's destructor asks
        self.max_restarts, self.restarts = max_restarts, 0
        self.workers: list[Worker] = []
        self._stepping: list[Worker] | None = None
        blocks: list[Block] = []
        self._finalizer = weakref.finalize(self, _shut_down, self.workers, blocks, os.getpid())
        try:
            for part in np.array_split(np.arange(len(rows)), num_workers):
                names = [rows[i] for i in part]
                self.workers.append(Worker(adapter, names, int(part[0]), kwargs, timeout_s))
            spec = merge_specs([spec for worker in self.workers for spec in worker.started()])
            self.block = Block(Layout.of(spec, len(rows)), shared=True)
            blocks.append(self.block)
            self._lost = np.zeros(len(rows), dtype=bool)
            self._set_up(rows, spec)
            self.start_states = hasattr(load_adapter(adapter), "save_state")
            for worker in self.workers:
                self._attach(worker)
        except WorkerLost as error:
            self._finalizer()
            raise RuntimeError(f"a simulator worker {error} while starting ({adapter} {rows[0]})") from error
        except BaseException:
            self._finalizer()
            raise

    def reset(self, *, seed: Any = None, options: dict | None = None) -> tuple[Observation, dict]:  # type: ignore[override]
        """See ``VlaVectorEnv``."""
        self._check_open()
        seeds, mask = row_seeds(seed, self.num_envs), row_mask(options, self.num_envs)
        left, starts, tasks = mask.copy(), row_starts(options, self), self._chosen(options, mask)
        while left.any():  # rows whose worker dies are begun again in the new one
            wanted = {
                w: [(r, seeds[r], starts.get(r), tasks.get(r)) for r in w.rows if left[r]]
                for w in self.workers
            }
            died = self._tell("reset", wanted)
            left &= died
        self._finished[mask] = False
        self._lost[mask] = False
        return self._observation(), {}

    def step(self, action: Any) -> Step:  # type: ignore[override]
        """See ``VlaVectorEnv``."""
        self.step_async(action)
        return self.step_wait()

    def step_async(self, action: Any) -> None:  # type: ignore[override]
        """See ``VlaVectorEnv``."""
        self._begin_step(action)
        self._before = {key: array.copy() for key, array in self.block.observations.items()}
        self._stepping = self._send(
            "step", {w: [r for r in w.rows if not self._lost[r]] for w in self.workers}
        )

    def step_wait(self) -> Step:  # type: ignore[override]
        """See ``VlaVectorEnv``."""
        if self._stepping is None:
            raise RuntimeError("step_wait without step_async")
        busy, self._stepping = self._stepping, None
        lost = self._lost | self._receive("step", busy)
        if lost.any():
            block = self.block
            for key, array in block.observations.items():
                array[lost] = self._before[key][lost]
            block.reward[lost] = 0
            block.terminated[lost] = block.success[lost] = False
            block.truncated[lost] = True
        return self._end_step(lost)

    def look(self, rows: Any = None) -> dict[str, Tensor]:
        """See ``VlaVectorEnv``."""
        rows = self._rows(rows)
        if self.block.images:
            wanted = {r for r in rows if not self._lost[r]}
            before = {key: array.copy() for key, array in self.block.images.items()}
            died = self._tell("look", {w: [r for r in w.rows if r in wanted] for w in self.workers})
            for key, array in self.block.images.items():
                array[died] = before[key][died]
        return self._images(rows)

    def save_states(self, rows: Sequence[int]) -> list[StartState | None]:
        """See ``VlaVectorEnv``."""
        if not self.start_states:
            return super().save_states(rows)
        rows = self._rows(rows)
        wanted = {r for r in rows if not self._lost[r]}
        self._tell("save", {w: [r for r in w.rows if r in wanted] for w in self.workers})
        return [self._saved.get(row) for row in rows]

    def close(self, **_: Any) -> None:
        """Stop the workers; safe to call twice."""
        self.closed = True
        self._finalizer()

    def _attach(self, worker: Worker) -> None:
        worker.send("attach", (self.block.layout, True, self.block.name))
        worker.receive()

    def _tell(self, command: str, payloads: dict[Worker, list]) -> np.ndarray:
        """Send to every worker with something to do, then wait for all. Bool [B]: rows whose worker was replaced."""
        return self._receive(command, self._send(command, payloads))

    def _send(self, command: str, payloads: dict[Worker, list]) -> list[Worker]:
        if (
            self._stepping is not None and command != "reset"
        ):  # answers nobody waits for are dropped by number
            raise RuntimeError(f"{command} between step_async and step_wait")
        self._stepping = None
        busy = [worker for worker, payload in payloads.items() if payload]
        for worker in busy:
            worker.send(command, payloads[worker])
        return busy

    def _receive(self, command: str, busy: list[Worker]) -> np.ndarray:
        died = np.zeros(self.num_envs, dtype=bool)
        errors: list[Exception] = []
        self._saved: dict[int, StartState] = {}
        for worker in busy:
            try:
                answer = worker.receive()
            except WorkerLost as loss:
                self._replace(worker, str(loss))
                died[list(worker.rows)] = True
                continue
            except Exception as error:  # after the others have answered, so that none is left talking
                errors.append(error)
                continue
            if command == "reset":
                for row, task in answer.items():
                    self._tasks[row] = task
            elif command == "save":
                self._saved |= answer
        if errors:
            raise errors[0]
        return died

    def _replace(self, worker: Worker, reason: str) -> None:
        """A new process for ``worker``; every episode of its rows is lost."""
        while True:
            self.restarts += 1
            if self.restarts > self.max_restarts:
                raise RuntimeError(f"simulator workers failed {self.restarts} times; the last one {reason}")
            log.warning(
                "simulator worker of rows %s %s: restarted (%d of at most %d)",
                list(worker.rows), reason, self.restarts, self.max_restarts,
            )  # fmt: skip
            self._lost[list(worker.rows)] = True
            worker.kill()
            worker.start()
            try:
                worker.started()
                self._attach(worker)
                return
            except WorkerLost as loss:
                reason = str(loss)


def _shut_down(workers: list[Worker], blocks: list[Block], owner: int) -> None:
    if os.getpid() != owner:  # a forked copy of the parent has no say
        return
    for worker in workers:
        worker.send("close")
    for worker in workers:
        worker.stop()
    for block in blocks:
        block.close()
