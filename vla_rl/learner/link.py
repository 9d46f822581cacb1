"""A learner's process and the two threads that talk to it, so that nobody who acts ever waits for a pipe."""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import threading
import time
from typing import Any

from torch import Tensor

from vla_rl.learner.messages import unpack
from vla_rl.learner.process import serve

PATIENCE = 600.0
"""Seconds that a learner may take to answer: a checkpoint of a large replay buffer, updates that are owed."""


class LearnerLink:
    """Starts the process at once; it is ready seconds later, and what is sent before waits for it.

    Args:
        arguments: of ``vla_rl.learner.process.serve``, without the link.
    """

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=serve, args=(theirs, *arguments), name="vla_rl-learner", daemon=True
        )
        self.process.start()
        theirs.close()  # ours must be the only other end: its death is how we learn of the process's
        self._out: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self.weights: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        """The newest, not yet taken."""
        self.failure: dict[str, Any] | None = None
        """What it said before it ended by itself: ``error``, ``text``, ``trace``."""
        self.dead = self.heard = False
        """Whether it has ended; whether it has said anything yet."""
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def send(self, message: bytes) -> None:
        """Queue a message; never waits."""
        self._out.put(message)

    def take_weights(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest weights, once."""
        with self._lock:
            weights, self.weights = self.weights, None
        return weights

    def wait(self, reply: str) -> dict[str, Any] | None:
        """Fields of the next ``reply``; None when the process is dead.

        Raises:
            TimeoutError: no answer in ten minutes.
        """
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                kind, fields = self._replies.get(timeout=0.1)
            except queue.Empty:
                if self.dead:
                    return None
                continue
            if kind == reply:
                return fields
        raise TimeoutError(f"the learner has not said '{reply}' for {PATIENCE:g} s")

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            while (message := self._out.get()) is not None:
                self._pipe.send_bytes(message)

    def _receive(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                kind, tensors, fields = unpack(self._pipe.recv_bytes())
                self.heard = True
                if kind == "weights":
                    with self._lock:
                        self.weights = tensors, fields
                elif kind == "failed":
                    self.failure = fields
                else:
                    self._replies.put((kind, fields))
        self.dead = True

    def close(self) -> None:
        """End the process (what it has not saved is in the journal); safe to call twice."""
        self._out.put(None)
        self.process.terminate()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        with contextlib.suppress(OSError):
            self._pipe.close()
