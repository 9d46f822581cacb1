"""A critic behind a websocket, as policies are: progress of pairs and done of pictures."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from vla_rl.critic.model import LONGEST, Critic
from vla_rl.serving.protocol import ProtocolError
from vla_rl.serving.schema import MAX_ROWS
from vla_rl.serving.server import Service, greeted


class CriticService(Service):
    """Answers messages about one critic, one at a time.

    Args:
        critic: what is served.
    """

    def __init__(self, critic: Critic) -> None:
        self.critic, self.requests = critic, 0
        self._lock = threading.Lock()
        self.methods = {"hello": self._hello, "progress": self._progress, "done": self._done}

    def _hello(self, message: dict[str, Any]) -> dict[str, Any]:
        known = ("image", "skip", "references", "threshold", "thresholds", "tasks")
        return greeted(message) | {"critic": {key: self.critic.notes[key] for key in known}}

    def _progress(self, message: dict[str, Any]) -> dict[str, Any]:
        tasks = self._checked(message, ("first", "second"))
        with self._lock, torch.no_grad():
            self.requests += 1
            seen = self.critic.look(torch.cat([message["first"], message["second"]]))
            mean, std = self.critic.progress(*seen.chunk(2), tasks, self._reference(message))
        return {"mean": mean, "std": std}

    def _done(self, message: dict[str, Any]) -> dict[str, Any]:
        tasks = self._checked(message, ("pictures",))
        with self._lock, torch.no_grad():
            self.requests += 1
            chance = self.critic.done(self.critic.look(message["pictures"]), tasks, self._reference(message))
        return {"chance": chance}

    def _reference(self, message: dict[str, Any]) -> Tensor | None:
        shown = message["reference"]
        return None if shown is None else self.critic.look(shown)

    def _checked(self, message: dict[str, Any], names: tuple[str, ...]) -> list[str]:
        """The instructions of a message that fits.

        Raises:
            ProtocolError: it does not; the text names the key.
        """
        if set(message) != {*names, "tasks", "reference"}:
            raise ProtocolError(f"the question has {', '.join(names)}, tasks and reference")
        tasks = message["tasks"]
        if not isinstance(tasks, list) or not 1 <= len(tasks) <= MAX_ROWS:
            raise ProtocolError(f"tasks must be 1 to {MAX_ROWS} sentences")
        if not all(isinstance(t, str) and 0 < len(t.encode()) <= LONGEST for t in tasks):
            raise ProtocolError(f"a task is a sentence of 1 to {LONGEST} bytes")
        size = tuple(self.critic.notes["image"])
        for name in names:
            _pictures(name, message[name], len(tasks), size)
        if (shown := message["reference"]) is not None:
            _pictures("reference", shown, int(self.critic.notes["references"]), size)
        return tasks


def _pictures(name: str, value: Any, count: int, size: tuple[int, ...]) -> None:
    right = isinstance(value, Tensor) and value.dtype == torch.uint8
    if not right or tuple(value.shape) != (count, 3, *size):
        raise ProtocolError(f"{name} must be uint8 {(count, 3, *size)}")
