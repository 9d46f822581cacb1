"""Process vectorisation: rows dealt to worker processes, arrays in shared memory, crashes survived.

``make("sim.maniskill:ManiSkillEnv", ids=[...], num_envs=8)`` is what every ``configs/env/*.yaml`` names. A worker
that dies or hangs is restarted and its rows are reported as truncated; nothing waits for ever.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing as mp
import os
import time
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sim.base import SimEnv
from sim.shared_memory import Block, Layout
from vla_rl.environment import EnvSpec, VlaVectorEnv, checked_action, row_mask, row_seeds
from vla_rl.errors import UserError

log = logging.getLogger("vla_rl.sim")


def load_adapter(adapter: str) -> Any:
    """The class named by ``module:Class``.

    Raises:
        UserError: no such module or class.
    """
    module, _, name = adapter.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"env.adapter={adapter}: {error}") from error


def make(
    adapter: str,
    ids: str | Sequence[str],
    num_envs: int = 1,
    num_workers: int | None = None,
    *,
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
        timeout_s: a worker silent for longer is replaced.
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
    load_adapter(adapter)
    rows = [names[i % len(names)] for i in range(num_envs)]
    if num_workers is None:
        num_workers = min(num_envs, len(os.sched_getaffinity(0)))
    if num_workers == 0:
        return SerialVectorEnv(adapter, rows, kwargs)
    return ProcessVectorEnv(adapter, rows, kwargs, min(num_workers, num_envs), timeout_s, max_restarts)


def merge_specs(specs: Sequence[EnvSpec]) -> EnvSpec:
    """One spec for rows of several tasks, which must agree on every dimension."""
    first = specs[0]
    for spec in specs[1:]:
        for name in ("state_dim", "env_state_dim", "action_low", "action_high", "cameras"):
            if getattr(spec, name) != getattr(first, name):
                raise UserError(
                    f"env.ids mixes {first.id} and {spec.id}, whose {name} differ "
                    f"({getattr(first, name)} and {getattr(spec, name)}): run them one at a time"
                )
    from dataclasses import replace

    unique = list(dict.fromkeys(s.id for s in specs))
    tasks = tuple(dict.fromkeys(t for s in specs for t in s.tasks))
    limit = max(s.max_episode_steps for s in specs)
    return replace(first, id="+".join(unique), tasks=tasks, max_episode_steps=limit)


class _BatchedEnv(VlaVectorEnv):
    """What the serial and the process version share: bookkeeping of rows around a ``Block`` of arrays."""

    block: Block

    def _set_up(self, rows: list[str], spec: EnvSpec) -> None:
        self._ids = rows
        self.set_spaces(spec, len(rows))
        self._finished = np.ones(len(rows), dtype=bool)
        self._tasks = [""] * len(rows)

    def task_ids(self) -> list[str]:
        """Id of each row's task."""
        return list(self._ids)

    def _observation(self) -> dict[str, Any]:
        out: dict[str, Any] = {k: torch.from_numpy(v.copy()) for k, v in self.block.observations.items()}
        out["task"] = list(self._tasks)
        return out

    def _begin_step(self, action: Any) -> None:
        checked = checked_action(action, self.env_spec, self.num_envs)
        if self._finished.any():
            rows = np.flatnonzero(self._finished).tolist()
            raise RuntimeError(f"rows {rows} have finished: reset them (options={{'reset_mask': ...}}) before step")
        self.block.action[:] = checked.numpy()

    def _end_step(self, restarted: np.ndarray | None = None) -> tuple[Any, Tensor, Tensor, Tensor, dict[str, Any]]:
        block = self.block
        self._finished = block.terminated | block.truncated
        info: dict[str, Any] = {"success": torch.from_numpy(block.success.copy())}
        if restarted is not None and restarted.any():
            info["worker_restarted"] = torch.from_numpy(restarted)
        return (
            self._observation(),
            torch.from_numpy(block.reward.copy()),
            torch.from_numpy(block.terminated.copy()),
            torch.from_numpy(block.truncated.copy()),
            info,
        )

    def _rows(self, rows: Any) -> list[int]:
        return list(range(self.num_envs)) if rows is None else [int(r) for r in rows]

    def _images(self, rows: list[int]) -> dict[str, Tensor]:
        return {k: torch.from_numpy(v[rows].copy()) for k, v in self.block.images.items()}


class SerialVectorEnv(_BatchedEnv):
    """Every row in this process; for debugging and for fast simulators."""

    def __init__(self, adapter: str, rows: list[str], kwargs: dict[str, Any]) -> None:
        factory = load_adapter(adapter)
        self.envs: list[SimEnv] = [factory(id, **kwargs) for id in rows]
        spec = merge_specs([e.spec for e in self.envs])
        self.block = Block(Layout.of(spec, len(rows)))
        self._set_up(rows, spec)

    def reset(self, *, seed: Any = None, options: dict | None = None) -> tuple[dict, dict]:  # type: ignore[override]
        """See ``VlaVectorEnv``."""
        seeds, mask = row_seeds(seed, self.num_envs), row_mask(options, self.num_envs)
        for row in np.flatnonzero(mask):
            observation, self._tasks[row] = self.envs[row].reset(seeds[row])
            self.block.write_observation(row, observation)
        self._finished[mask] = False
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, Tensor, Tensor, Tensor, dict[str, Any]]:  # type: ignore[override]
        """See ``VlaVectorEnv``."""
        self._begin_step(action)
        for row, env in enumerate(self.envs):
            self.block.write_step(row, *env.step(self.block.action[row]))
        return self._end_step()

    def look(self, rows: Any = None) -> dict[str, Tensor]:
        """See ``VlaVectorEnv``."""
        rows = self._rows(rows)
        for row in rows:
            self.block.write_images(row, self.envs[row].look())
        return self._images(rows)

    def close(self, **_: Any) -> None:
        """Free the simulators."""
        for env in self.envs:
            env.close()
        self.envs = []


def _work(pipe: Any, adapter: str, ids: list[str], first: int, kwargs: dict[str, Any], threads: int) -> None:
    """A worker's life: build its rows, attach to the shared block, obey."""
    os.environ.update(
        {n: str(threads) for n in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        | {"OMP_WAIT_POLICY": "PASSIVE"}
    )
    torch.set_num_threads(threads)
    block = None
    try:
        envs = [load_adapter(adapter)(id, **kwargs) for id in ids]
        pipe.send(("ok", [e.spec for e in envs]))
        while True:
            command, payload = pipe.recv()
            answer: Any = None
            if command == "attach":
                block = Block(*payload)
            elif command == "reset":
                assert block is not None
                answer = {}
                for row, seed in payload:
                    observation, answer[row] = envs[row - first].reset(seed)
                    block.write_observation(row, observation)
            elif command == "step":
                assert block is not None
                for i, env in enumerate(envs):
                    block.write_step(first + i, *env.step(block.action[first + i]))
            elif command == "look":
                assert block is not None
                for row in payload:
                    block.write_images(row, envs[row - first].look())
            elif command == "close":
                break
            pipe.send(("ok", answer))
        for env in envs:
            env.close()
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        pass
    except Exception as error:  # told to the parent, which raises it there
        import traceback

        kind = "user" if isinstance(error, UserError) else "error"
        try:
            pipe.send((kind, str(error) if kind == "user" else traceback.format_exc()))
        except (BrokenPipeError, OSError):
            pass
    finally:
        # SAPIEN's and EGL's destructors may crash at interpreter exit, after all work is done.
        os._exit(0)


class _WorkerLost(Exception):
    pass


class _Worker:
    """One process and its rows."""

    def __init__(self, adapter: str, ids: list[str], first: int, kwargs: dict[str, Any], timeout_s: float) -> None:
        self.first, self.rows = first, range(first, first + len(ids))
        self.timeout_s = timeout_s
        self._arguments = (adapter, ids, first, kwargs, 1)
        self.start()

    def start(self) -> None:
        context = mp.get_context("spawn")
        self.pipe, child = context.Pipe()
        self.process = context.Process(target=_work, args=(child, *self._arguments), daemon=True)
        self.process.start()
        child.close()

    def send(self, command: str, payload: Any = None) -> None:
        try:
            self.pipe.send((command, payload))
        except (BrokenPipeError, OSError):
            pass  # found out, and handled, in receive

    def receive(self) -> Any:
        """The answer; ``_WorkerLost`` when it died or hangs; its own error re-raised."""
        deadline = time.monotonic() + self.timeout_s
        while not self.pipe.poll(min(1.0, self.timeout_s)):
            if not self.process.is_alive() and not self.pipe.poll(0):
                raise _WorkerLost(f"died with exit code {self.process.exitcode}")
            if time.monotonic() > deadline:
                raise _WorkerLost(f"gave no answer for {self.timeout_s:.0f} s")
        try:
            kind, answer = self.pipe.recv()
        except (EOFError, ConnectionResetError, OSError) as error:
            self.process.join(1)
            raise _WorkerLost(f"died with exit code {self.process.exitcode}") from error
        if kind == "user":
            raise UserError(answer)
        if kind == "error":
            raise RuntimeError(f"environment rows {list(self.rows)}:\n{answer}")
        return answer

    def stop(self, wait: float = 2.0) -> None:
        self.send("close")
        self.process.join(wait)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(2)
        self.pipe.close()


class ProcessVectorEnv(_BatchedEnv):
    """Rows in worker processes (spawned, one thread each); see ``make``."""

    def __init__(
        self,
        adapter: str,
        rows: list[str],
        kwargs: dict[str, Any],
        num_workers: int,
        timeout_s: float,
        max_restarts: int,
    ) -> None:
        parts = np.array_split(np.arange(len(rows)), num_workers)
        self.max_restarts, self.restarts = max_restarts, 0
        self.workers = [
            _Worker(adapter, [rows[i] for i in part], int(part[0]), kwargs, timeout_s) for part in parts
        ]
        self._finalizer = weakref.finalize(self, _stop_all, self.workers)
        try:
            specs = [spec for worker in self.workers for spec in worker.receive()]
            spec = merge_specs(specs)
        except _WorkerLost as error:
            self.close()
            raise RuntimeError(f"a simulator worker {error} while starting ({adapter} {rows[0]})") from error
        except BaseException:
            self.close()
            raise
        self.block = Block(Layout.of(spec, len(rows)), shared=True)
        self._set_up(rows, spec)
        self._all("attach", {w: (self.block.layout, True, self.block.name) for w in self.workers})

    def _all(self, command: str, payloads: dict[_Worker, Any]) -> np.ndarray:
        """Send to each worker at once, then wait for each. Returns bool [B]: rows whose worker was replaced."""
        for worker, payload in payloads.items():
            worker.send(command, payload)
        restarted = np.zeros(self.num_envs, dtype=bool)
        for worker, payload in payloads.items():
            try:
                answer = worker.receive()
            except _WorkerLost as error:
                self._replace(worker, str(error))
                restarted[list(worker.rows)] = True
                if command in ("reset", "look"):  # an episode begins, or is seen, all the same
                    restarted[list(worker.rows)] = command == "look"
                    answer = self._retry(worker, command, payload)
                else:
                    answer = None
            if command == "reset" and answer:
                for row, task in answer.items():
                    self._tasks[row] = task
        return restarted

    def _retry(self, worker: _Worker, command: str, payload: Any) -> Any:
        if command == "look":
            for row in payload:  # the state that was to be seen is gone with its process
                for image in self.block.images.values():
                    image[row] = 0
            return None
        worker.send(command, payload)
        return worker.receive()

    def _replace(self, worker: _Worker, reason: str) -> None:
        self.restarts += 1
        log.warning("simulator worker of rows %s %s: restarted (%d)", list(worker.rows), reason, self.restarts)
        if self.restarts > self.max_restarts:
            raise RuntimeError(f"simulator workers failed {self.restarts} times; the last one {reason}")
        worker.process.kill()
        worker.process.join(5)
        worker.pipe.close()
        worker.start()
        try:
            worker.receive()
            worker.send("attach", (self.block.layout, True, self.block.name))
            worker.receive()
        except _WorkerLost as error:
            raise RuntimeError(f"simulator worker {reason}, and its replacement {error}") from error
        self._lost = getattr(self, "_lost", np.zeros(self.num_envs, dtype=bool))
        self._lost[list(worker.rows)] = True

    def reset(self, *, seed: Any = None, options: dict | None = None) -> tuple[dict, dict]:  # type: ignore[override]
        """See ``VlaVectorEnv``."""
        seeds, mask = row_seeds(seed, self.num_envs), row_mask(options, self.num_envs)
        wanted = {w: [(r, seeds[r]) for r in w.rows if mask[r]] for w in self.workers}
        self._all("reset", {w: p for w, p in wanted.items() if p})
        self._finished[mask] = False
        if hasattr(self, "_lost"):
            self._lost[mask] = False
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, Tensor, Tensor, Tensor, dict[str, Any]]:  # type: ignore[override]
        """See ``VlaVectorEnv``."""
        self._begin_step(action)
        lost = getattr(self, "_lost", None)
        skip = lost is not None and lost.any()
        workers = [w for w in self.workers if not (skip and lost[list(w.rows)].any())]
        restarted = self._all("step", {w: None for w in workers})
        if skip:  # replaced between steps (in look or reset): these rows have no episode any more
            for worker in self.workers:
                if worker not in workers:
                    restarted[list(worker.rows)] = True
        self.block.reward[restarted] = 0
        self.block.terminated[restarted] = False
        self.block.success[restarted] = False
        self.block.truncated[restarted] = True
        return self._end_step(restarted)

    def look(self, rows: Any = None) -> dict[str, Tensor]:
        """See ``VlaVectorEnv``."""
        rows = self._rows(rows)
        wanted = {w: [r for r in rows if r in w.rows] for w in self.workers}
        self._all("look", {w: p for w, p in wanted.items() if p})
        return self._images(rows)

    def close(self, **_: Any) -> None:
        """Stop the workers; safe to call twice."""
        self._finalizer()
        if hasattr(self, "block"):
            self.block.close()


def _stop_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.send("close")
    for worker in workers:
        worker.stop()
