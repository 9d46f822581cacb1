"""Episodes that began alike, compared with one another (GRPO, arXiv 2402.03300; in VLAs SimpleVLA-RL, arXiv 2509.09674)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.errors import UserError

Settled = list[tuple[int, int, float | None]]
"""(row, episode of that row, its advantage; None = nothing is to be learned from it)."""


class Groups:
    """Rows in groups of ``size``: the n-th episode of each row of a group begins from the same scene.

    An episode's advantage is its return, less the mean of its group's n-th episodes, in their standard deviations. Where all
    of them ended alike, or one was cut short (a checkpoint), there is nothing to compare.

    Args:
        rows: environment rows B.
        size: G, rows of a group, at least 2.

    Raises:
        UserError: rows that cannot be divided.
    """

    def __init__(self, rows: int, size: int) -> None:
        if size < 2:
            raise UserError(f"algorithm.group={size}: compare at least 2 episodes, or set 0 for a critic")
        self.size = size
        self.begun, self.seen = [0] * rows, 0
        self._total, self._done = [0.0] * rows, [False] * rows
        self._outcomes: dict[tuple[int, int], dict[int, float | None]] = {}
        self.mixed = 0
        """Groups that ended with more than one outcome, of ``seen``."""
        self.arrange([""] * rows)

    def arrange(self, tasks: Sequence[str]) -> None:
        """Put rows of one task together.

        Args:
            tasks: the task of each row.

        Raises:
            UserError: a task whose rows cannot be divided into groups.
        """
        self.group = [0] * len(tasks)
        self.count = 0
        for task in dict.fromkeys(tasks):
            rows = [row for row, of in enumerate(tasks) if of == task]
            if len(rows) % self.size:
                raise UserError(
                    f"algorithm.group={self.size}: {len(rows)} rows{f' of {task}' if task else ''} do not divide into groups: "
                    "set env.num_envs to a multiple of group times the number of tasks"
                )
            for place, row in enumerate(rows):
                self.group[row] = self.count + place // self.size
            self.count += len(rows) // self.size

    def begin(self, row: int) -> int:
        """The number of the scene that ``row`` begins now."""
        self.begun[row] += 1
        return self.group[row] + self.count * (self.begun[row] - 1)

    def observe(self, frames: TensorDict, rows: Tensor) -> Settled:
        """Frames of the collector -> what is known now of episodes that are over."""
        final, reward = frames["final"].tolist(), frames["reward"].tolist()
        done = (frames["terminated"] | frames["truncated"]).tolist()
        settled: Settled = []
        for index, row in enumerate(rows.tolist()):
            if not final[index]:
                self._total[row] += reward[index]
                self._done[row] |= done[index]
                continue
            outcome = self._total[row] if self._done[row] else None
            self._total[row], self._done[row] = 0.0, False
            settled += self._ended(row, outcome)
        return settled

    def _ended(self, row: int, outcome: float | None) -> Settled:
        number = self.begun[row]
        key = (self.group[row], number)
        found = self._outcomes.setdefault(key, {})
        found[row] = outcome
        if len(found) < self.size:
            return []
        del self._outcomes[key]
        returns = [value for value in found.values() if value is not None]
        whole = len(returns) == self.size
        values = torch.tensor(returns)
        mixed = whole and bool(values.std(correction=0) > 1e-6)
        self.seen += whole
        self.mixed += mixed
        if not mixed:
            return [(each, number, None) for each in found]
        advantages = (values - values.mean()) / values.std(correction=0)
        return [(each, number, float(a)) for each, a in zip(found, advantages, strict=True)]

    def state(self) -> dict[str, Any]:
        """For a checkpoint, before which every episode in flight has been closed."""
        waiting = [
            [*key, row, outcome] for key, found in self._outcomes.items() for row, outcome in found.items()
        ]
        return {"begun": self.begun, "waiting": waiting, "seen": self.seen, "mixed": self.mixed}

    def restore(self, state: dict[str, Any]) -> None:
        """What ``state`` gave."""
        self.begun, self.seen, self.mixed = list(state["begun"]), state["seen"], state["mixed"]
        self._outcomes = {}
        for group, number, row, outcome in state["waiting"]:
            self._outcomes.setdefault((group, number), {})[row] = outcome
