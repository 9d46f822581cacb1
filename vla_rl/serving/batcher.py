"""One thread that runs the policy; requests that come in together are answered by one forward pass."""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future
from typing import Any

import torch
from tensordict import TensorDict

from vla_rl.policies.base import Observation
from vla_rl.serving.schema import ActRequest


class Batcher:
    """Answers requests, joined when they fit and come within ``window`` seconds.

    Args:
        serve: does one request.
        window: seconds that the first waits for others.
        rows: of one forward pass at most.
    """

    def __init__(self, serve: Any, *, window: float, rows: int) -> None:
        self.serve, self.window, self.rows = serve, window, rows
        self.passes = self.requests = 0
        """Forward passes, and requests that they answered."""
        self._queue: queue.Queue[tuple[ActRequest, Future] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ask(self, request: ActRequest, timeout: float) -> tuple[TensorDict, TensorDict]:
        """The policy's output and next state for a request's rows.

        Raises:
            TimeoutError: not answered in ``timeout`` seconds.
        """
        future: Future = Future()
        self._queue.put((request, future))
        return future.result(timeout)

    def close(self) -> None:
        """End the thread after what is under way."""
        self._queue.put(None)
        self._thread.join(10.0)

    def _run(self) -> None:
        held: tuple[ActRequest, Future] | None = None
        while True:
            first = held or self._queue.get()
            held = None
            if first is None:
                return
            group, until = [first], time.monotonic() + self.window
            while sum(r.rows for r, _ in group) < self.rows:
                try:
                    following = self._queue.get(timeout=max(0.0, until - time.monotonic()))
                except queue.Empty:
                    break
                total = sum(r.rows for r, _ in group)
                if following is None:
                    self._queue.put(None)
                    break
                if not first[0].joins(following[0]) or total + following[0].rows > self.rows:
                    held = following
                    break
                group.append(following)
            self._answer(group)

    def _answer(self, group: list[tuple[ActRequest, Future]]) -> None:
        requests = [request for request, _ in group]
        try:
            output, state = self.serve(_joined(requests))
        except Exception as error:
            for _, future in group:
                future.set_exception(error)
            return
        self.passes += 1
        self.requests += len(group)
        sizes = [request.rows for request in requests]
        for (_, future), out, after in zip(group, output.split(sizes), state.split(sizes), strict=True):
            future.set_result((out, after))


def _joined(requests: list[ActRequest]) -> ActRequest:
    if len(requests) == 1:
        return requests[0]
    observation: Observation = {}
    for key, value in requests[0].observation.items():
        parts = [request.observation[key] for request in requests]
        observation[key] = sum(parts, []) if isinstance(value, list) else torch.cat(parts)
    state: Any = torch.cat([request.state for request in requests])
    noises = [request.noise for request in requests if request.noise is not None]
    return ActRequest(observation, state, torch.cat(noises) if noises else None, requests[0].deterministic)
