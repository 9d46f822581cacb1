"""The simulators of some rows: each its own task's, and those of other tasks when it is asked to play them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sim.base import SimEnv
from vla_rl.environment import StartState

Begin = tuple[int, int | None, StartState | None, str | None]
"""Row, seed, saved state to begin from, task to play (None: the row's own)."""


class Rows:
    """Simulators are built when first needed; one that no row plays any more waits for the next that wants its task.

    Args:
        factory: builds a simulator from an id.
        ids: task of each row.
    """

    def __init__(self, factory: Callable[[str], SimEnv], ids: Sequence[str]) -> None:
        self.factory, self.own = factory, list(ids)
        self.playing = list(ids)
        self.envs: list[SimEnv] = []
        self.idle: dict[str, list[SimEnv]] = defaultdict(list)
        try:
            for id in ids:
                self.envs.append(factory(id))
        except BaseException:
            self.close()
            raise

    def __getitem__(self, row: int) -> SimEnv:
        return self.envs[row]

    def begin(
        self, row: int, seed: int | None, start: StartState | None, task: str | None
    ) -> tuple[dict[str, np.ndarray], str]:
        """An episode of ``seed``, or one from a saved state, in the row's own task or in ``task``."""
        self._play(row, task or self.own[row])
        env: Any = self.envs[row]
        return env.reset(seed) if start is None else env.restore(start)

    def _play(self, row: int, task: str) -> None:
        before = self.playing[row]
        if task == before:
            return
        fresh = self.idle[task].pop() if self.idle[task] else self.factory(task)
        self.idle[before].append(self.envs[row])
        self.envs[row], self.playing[row] = fresh, task

    def close(self) -> None:
        """Free all; safe to call twice."""
        envs = [*self.envs, *(env for waiting in self.idle.values() for env in waiting)]
        self.envs = []
        self.idle.clear()
        for env in envs:
            env.close()
