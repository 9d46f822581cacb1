"""Learners that make every update together: each has its own part of the collectors and of the replay.

A batch is drawn in equal parts, one from each replay, and gradients are averaged before they are used
(``vla_rl.algorithms.descent``), so all have the same networks at all times. Whatever has to be done by all at the same update is
agreed on in one exchange of numbers.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from vla_rl.algorithms.descent import from_first, summed

PATIENCE = 300.0
"""Seconds that one waits for the others; a rank that reads a checkpoint takes its time."""


class Ranks:
    """This process as one of ``count`` learners.

    Args:
        rank: 0 to ``count`` - 1.
        count: of learners; 1 = nobody to agree with.
        meeting: ``host:port`` at which rank 0 can be reached.
    """

    def __init__(self, rank: int = 0, count: int = 1, meeting: str | None = None) -> None:
        self.rank, self.count = rank, count
        if count > 1:
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                init_method=f"tcp://{meeting}",
                rank=rank,
                world_size=count,
                timeout=timedelta(seconds=PATIENCE),
            )

    def sums(self, *values: float) -> list[float]:
        """See ``vla_rl.algorithms.descent.summed``."""
        return summed(*values)

    def share(self, learner: Any) -> None:
        """Give all ranks the acting networks of rank 0, running statistics among them."""
        from_first(learner.acting_modules().values())
