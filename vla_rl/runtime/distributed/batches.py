"""What a distributed learner leaves on disk: journals of batches, and the layout of its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_rl.data.journal import Journal, recover
from vla_rl.errors import UserError

JOURNALS = 3
"""Kept: of the newest checkpoint and of those that a broken one falls back on."""

BATCHES = "batches"
"""Folder of the journals in a run's folder; a second learner's is ``batches-1``."""

LEARNERS = "learners"
"""Key of ``trainer.json``: how many there were."""

TABLE = "distributed"
"""Key of ``trainer.json`` under which a checkpoint keeps who has sent what."""


class Batches:
    """The journals of one learner. A batch counts when it is here.

    Args:
        run: folder of the run.
        rank: of the learner.
    """

    def __init__(self, run: Path, rank: int = 0) -> None:
        self.folder = run / (f"{BATCHES}-{rank}" if rank else BATCHES)
        self._journal: Journal | None = None

    def write(self, message: bytes, collector: int, generation: int, number: int, steps: int) -> None:
        """Append a batch (``number`` -1: somebody joined, nothing yet); ``steps`` of the learner name a new journal."""
        if self._journal is None:
            self._journal = Journal(self.folder / f"{steps:09d}-{time.time_ns()}.journal")
        at = np.array([collector, generation, number], np.int64)
        self._journal.append({"message": np.frombuffer(message, np.uint8), "at": at})

    def rotate(self) -> None:
        """A checkpoint has all that was written: a new journal from here on, the oldest ones go."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        first = {path.name.split("-")[0] for path in self.folder.glob("*.journal")}
        kept = sorted(first)[-JOURNALS:]
        for path in self.folder.glob("*.journal"):
            if path.name.split("-")[0] not in kept:
                path.unlink()

    def records(self) -> Iterator[dict[str, np.ndarray]]:
        """All that is there, in the order in which it was written."""
        for path in sorted(self.folder.glob("*.journal")):
            yield from recover(path)


def part_of(rank: int) -> str:
    """Folder of a learner's part in a checkpoint."""
    return f"algorithm-{rank}" if rank else "algorithm"


def check_places(table: Sequence[Any], had: int, collectors: int, learners: int) -> None:
    """Refuse to go on with other parts than a run was begun with: its replays are divided among them.

    Args:
        table: of a checkpoint, one entry for each collector.
        had: learners then.
        collectors: now.
        learners: now.

    Raises:
        UserError: with the numbers of then.
    """
    if (len(table), had) != (collectors, learners):
        raise UserError(
            f"the run was begun with num_collectors={len(table)} num_learners={had}, whose rows its replay has: continue with as many"
        )
