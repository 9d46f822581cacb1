"""The episodes being recorded, step by step on disk, and what a cut left of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vla_rl.data.journal import Journal, recover

Frame = dict[str, np.ndarray]
FORGET = "forget"


class Live:
    """One journal per attempt in ``folder``.

    Args:
        folder: inside the recording's work folder.
        every: seconds between syncs to the disk.
    """

    def __init__(self, folder: Path, every: float = 0.5) -> None:
        self.folder, self.every = folder, every
        self._open: dict[int, Journal] = {}

    def step(self, attempt: int, task: str, frame: Frame) -> None:
        """Note a finished step."""
        if attempt not in self._open:
            self._open[attempt] = Journal(self.folder / f"{attempt:06d}.steps", self.every)
            self._open[attempt].append({"task": np.frombuffer(task.encode(), np.uint8)})
        self._open[attempt].append(frame)

    def forget(self, attempt: int, count: int) -> None:
        """The last ``count`` steps of an attempt have been undone."""
        if count and attempt in self._open:
            self._open[attempt].append({FORGET: np.array([count])})

    def end(self, attempt: int) -> None:
        """The episode is stored elsewhere now."""
        journal = self._open.pop(attempt, None)
        if journal is not None:
            journal.close(delete=True)

    def close(self) -> None:
        """Sync what is under way; it stays for ``left``."""
        for journal in self._open.values():
            journal.close()
        self._open = {}

    def left(self) -> Iterator[tuple[int, str, list[Frame]]]:
        """(attempt, task, finished steps) of every episode that a cut left; each file is deleted once it is handled."""
        for path in sorted(self.folder.glob("[0-9]*.steps")):
            records = recover(path)
            if records:
                yield int(path.stem), bytes(records[0]["task"]).decode(), _standing(records[1:])
            path.unlink()


def _standing(records: list[Frame]) -> list[Frame]:
    """The steps that nobody has undone."""
    frames: list[Frame] = []
    for record in records:
        if FORGET in record:
            del frames[-int(record[FORGET][0]) :]
        else:
            frames.append(record)
    return frames
