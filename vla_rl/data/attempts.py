"""Bookkeeping of a recording: which attempt to play next, which episodes are kept, when there are enough."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vla_rl.data.spool import Spool
from vla_rl.errors import UserError
from vla_rl.keys import ACTION
from vla_rl.stats import wilson

Progress = Callable[[dict[str, Any]], None]


class Attempts:
    """Which attempts are done, which episodes are kept, when there are enough.

    Attempt i plays task ``tasks[i % K]`` from ``seed + i``; each task has its share of the episodes. Without ``max_attempts`` it is
    over as soon as a task's successes are so rare that what is missing will not come in 20 attempts per episode.
    """

    def __init__(
        self, spool: Spool, settings: dict[str, Any], max_attempts: int | None, progress: Progress | None
    ) -> None:
        self.spool, self.settings = spool, settings
        self.tasks: list[str] = settings["tasks"]
        self.only_success = settings["only_success"]
        total, count = settings["episodes"], len(self.tasks)
        self.quota = [total // count + (k < total % count) for k in range(count)]
        self.limit = list(self.quota)
        self.patient = max_attempts is not None or not self.only_success
        if self.only_success:
            self.limit = [(max_attempts or max(100, 20 * total)) // count] * count
        self.done = spool.done()
        self.resumed = sum(self.done.values())
        self._info: dict[int, tuple[bool, int]] = {}  # kept attempt -> success, length
        for attempt, kept in self.done.items():
            if kept:
                arrays = spool.read(attempt, ("success", ACTION))
                self._info[attempt] = bool(arrays["success"]), len(arrays[ACTION])
        self._progress = progress
        self._begun = [0] * count
        self._again: list[int] = []
        self._crashes: dict[int, int] = {}

    def next_attempt(self, task_id: str) -> int | None:
        """The next attempt for a row that plays ``task_id``, None when no more need be begun."""
        task, count = self.tasks.index(task_id), len(self.tasks)
        for attempt in self._again:
            if attempt % count == task:
                self._again.remove(attempt)
                return attempt
        if len(self._kept_of(task)) >= self.quota[task]:
            return None
        while self._begun[task] * count + task in self.done:
            self._begun[task] += 1
        if self._begun[task] >= self.limit[task] or self._hopeless(task):
            return None
        self._begun[task] += 1
        return (self._begun[task] - 1) * count + task

    def retry(self, attempt: int) -> None:
        """Play an attempt again whose simulator process died."""
        self._crashes[attempt] = self._crashes.get(attempt, 0) + 1
        if self._crashes[attempt] >= 3:
            seed = self.settings["seed"] + attempt
            raise UserError(
                f"the simulator died 3 times in the episode of seed {seed}: choose a seed range without it; "
                "finished episodes are kept"
            )
        self._again.append(attempt)

    def again(self, attempt: int) -> None:
        """Play an attempt again that somebody has thrown away."""
        self._again.append(attempt)

    def _kept_of(self, task: int) -> list[int]:
        """Attempts of a task that are in the data set for certain: no earlier one is still being played."""
        kept: list[int] = []
        attempt = task
        while attempt in self.done and len(kept) < self.quota[task]:
            if self.done[attempt]:
                kept.append(attempt)
            attempt += len(self.tasks)
        return kept

    def _tried(self, task: int) -> tuple[int, int]:
        """A task's successes and the attempts they took, so far."""
        mine = [kept for attempt, kept in self.done.items() if attempt % len(self.tasks) == task]
        return sum(mine), len(mine)

    def _hopeless(self, task: int) -> bool:
        """Whether what is missing is beyond what the attempts that are left will bring, three deviations off."""
        if self.patient:
            return False
        successes, tried = self._tried(task)
        most = wilson(successes, tried, z=3.0)[1]
        return most * (self.limit[task] - tried) < self.quota[task] - successes

    def kept(self) -> list[int]:
        """The attempts that make up the data set, in order."""
        return sorted(attempt for task in range(len(self.tasks)) for attempt in self._kept_of(task))

    @property
    def complete(self) -> bool:
        """Whether every wanted episode is stored."""
        return len(self.kept()) >= self.settings["episodes"]

    def shortfall(self) -> UserError:
        """What to say when all attempts are used up."""
        for task, name in enumerate(self.tasks):
            kept = len(self._kept_of(task))
            if kept < self.quota[task]:
                tried = self._tried(task)[1]
                return UserError(
                    f"only {kept} of {tried} attempts at {name} succeeded, {self.quota[task]} "
                    f"were asked for. They are kept: go on with the same command and attempts={2 * sum(self.limit)}, or use "
                    "a better policy, fewer episodes, or only_success=false"
                )
        return UserError("nothing left to record")

    def finish(self, attempt: int, arrays: dict[str, np.ndarray]) -> None:
        """Store a finished attempt."""
        success = bool(arrays["success"])
        keep = success or not self.only_success
        self.spool.write(attempt, arrays if keep else None)
        self.done[attempt] = keep
        if keep:
            self._info[attempt] = success, len(arrays[ACTION])
        if self._progress:
            infos = self._info.values()
            self._progress(
                {
                    "episodes": min(len(infos), self.settings["episodes"]),
                    "total": self.settings["episodes"],
                    "attempts": len(self.done),
                    "successes": sum(i[0] for i in infos),
                    "frames": sum(i[1] for i in infos),
                }
            )

    def summary(self, out: Path) -> dict[str, Any]:
        """Counts of the data set and of the attempts it took, in all and per task."""
        per_task: dict[str, dict[str, Any]] = {}
        for task, name in enumerate(self.tasks):
            kept = self._kept_of(task)
            tried = range(task, kept[-1] + 1, len(self.tasks)) if kept else range(0)
            successes = sum(a in self._info and self._info[a][0] for a in tried)
            per_task[name] = {
                "episodes": len(kept),
                "attempts": len(tried),
                "successes": successes,
                "success_rate": successes / max(1, len(tried)),
            }
        attempts, successes = (sum(t[key] for t in per_task.values()) for key in ("attempts", "successes"))
        return {
            "path": str(out),
            "episodes": len(self.kept()),
            "frames": sum(self._info[a][1] for a in self.kept()),
            "attempts": attempts,
            "successes": successes,
            "success_rate": successes / attempts,
            "per_task": per_task,
            "resumed_episodes": self.resumed,
        }
