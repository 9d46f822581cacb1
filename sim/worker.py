"""One simulator process: its life (``_work``) and the parent's handle on it (``Worker``)."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from sim.rows import Rows
from sim.serial import load_adapter
from sim.shared_memory import Block
from vla_rl.errors import UserError

ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} | {
    "OMP_WAIT_POLICY": "PASSIVE"
}

PRELOAD = "VLA_RL_PRELOAD"
"""Of the module that ``sim.preloaded`` imports."""

START_S = 180.0
"""Seconds a worker may take to import its simulator and build its rows, whatever ``timeout_s``."""


class WorkerLost(Exception):
    """The process died, or has been silent for too long."""


def _work(
    pipe: Connection,
    adapter: str,
    ids: list[str],
    first: int,
    kwargs: dict[str, Any],
    environment: dict[str, str],
) -> None:
    """A worker's life: build its rows, then obey until told to stop or until the parent is gone."""
    os.environ.update(environment)  # a fork server's are those of the day it began
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it closes us
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        rows = Rows(partial(load_adapter(adapter), **kwargs), ids)
        pipe.send((0, "ok", [env.spec for env in rows.envs]))
        _serve(pipe, rows, first)
        rows.close()
    except (EOFError, ConnectionError):
        pass  # the parent is gone
    except Exception as error:
        _report(pipe, 0, error)
    finally:
        # SAPIEN's and EGL's destructors may crash at interpreter exit, after all work is done.
        os._exit(0)


def _serve(pipe: Connection, rows: Rows, first: int) -> None:
    block: Block | None = None
    while True:
        number, command, payload = pipe.recv()
        if command == "close":
            return
        try:
            if command == "attach":
                block, answer = Block(*payload), None
            else:
                assert block is not None, "not attached"
                answer = _obey(command, payload, rows, first, block)
        except Exception as error:  # told to the parent, which raises it there
            _report(pipe, number, error)
        else:
            pipe.send((number, "ok", answer))


def _obey(command: str, payload: Any, rows: Rows, first: int, block: Block) -> Any:
    if command == "step":
        for row in payload:
            block.write_step(row, *rows[row - first].step(block.action[row]))
        return None
    if command == "look":
        for row in payload:
            block.write_images(row, rows[row - first].look())
        return None
    if command == "save":
        return {row: rows[row - first].save_state() for row in payload}  # type: ignore[attr-defined]
    tasks: dict[int, str] = {}
    for row, seed, start, task in payload:
        observation, tasks[row] = rows.begin(row - first, seed, start, task)
        block.write_observation(row, observation)
    return tasks


def _report(pipe: Connection, number: int, error: Exception) -> None:
    text = f"{type(error).__name__}: {error}"
    answer = str(error) if isinstance(error, UserError) else (text, traceback.format_exc())
    try:
        pipe.send((number, "user" if isinstance(error, UserError) else "error", answer))
    except OSError:
        pass


def _die_with_parent() -> None:
    parent = mp.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


class Worker:
    """One process and the rows it plays: ``ids`` from row ``first`` on.

    Commands are numbered, so that an answer nobody waited for (the parent was interrupted) is not taken for
    the next one's.
    """

    def __init__(
        self, adapter: str, ids: list[str], first: int, kwargs: dict[str, Any], timeout_s: float
    ) -> None:
        self.rows = range(first, first + len(ids))
        self.ids, self.timeout_s = ids, timeout_s
        self._arguments = (adapter, ids, first, kwargs)
        self.start()

    def start(self) -> None:
        """Begin (again); then ask ``started``."""
        context = _context()
        self.pipe, child = context.Pipe()
        self.number = 0
        module = self._arguments[0].partition(":")[0]
        with _environment(ONE_THREAD | {PRELOAD: module}):
            arguments = (child, *self._arguments, dict(os.environ))
            self.process = context.Process(target=_work, args=arguments, daemon=True)
            self.process.start()
        child.close()

    def started(self) -> list[Any]:
        """The specs of its rows, once they are built; raises as ``receive``."""
        return self.receive(max(START_S, self.timeout_s))

    def send(self, command: str, payload: Any = None) -> None:
        """Tell it to do something; a dead worker is found out in ``receive``."""
        self.number += 1
        try:
            self.pipe.send((self.number, command, payload))
        except OSError:
            pass

    def receive(self, timeout_s: float | None = None) -> Any:
        """The answer to the last command, within ``timeout_s`` (None: the worker's own limit).

        Raises:
            WorkerLost: it died or hangs.
            UserError: as raised in the worker.
            RuntimeError: any other error in the worker, with its traceback as a note.
        """
        limit = self.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit
        while True:
            if not self.pipe.poll(max(0.0, deadline - time.monotonic())):
                raise WorkerLost(f"gave no answer for {limit:g} s")
            try:
                number, kind, answer = self.pipe.recv()
            except (EOFError, OSError) as error:
                self.process.join(5)
                raise WorkerLost(f"died with exit code {self.process.exitcode}") from error
            if number == self.number:
                break
        if kind == "user":
            raise UserError(answer)
        if kind == "error":
            error = RuntimeError(f"simulator of rows {list(self.rows)} ({', '.join(self.ids)}): {answer[0]}")
            error.add_note("In the worker process:\n" + answer[1])
            raise error
        return answer

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.join(5)
        self.pipe.close()

    def stop(self, seconds: float = 2.0) -> None:
        """Wait for it to end after ``send("close")``, then insist."""
        self.process.join(seconds)
        self.kill()


def _context() -> Any:
    """How workers begin: forked off a server that has imported torch and the simulator, once for all of them.

    Where a CUDA device is, importing a simulator may touch it, and what is forked then cannot use it: there, and where
    there is no fork server, each is spawned and imports for itself.
    """
    if sys.platform != "linux" or torch.cuda.is_available():
        return mp.get_context("spawn")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["sim.preloaded"])
    return context


@contextmanager
def _environment(values: dict[str, str]) -> Any:
    """Environment variables for a child: thread pools read them when numpy and torch are imported."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
