"""From judgements of pairs to a value of every moment.

The reference adds up pairs: v += c (1 - v). Errors add up with them. Here each moment is also compared with the beginning, where
nothing is done yet and progress is the value itself; both are joined by how sure the critic is of each (a Kalman filter of one
number per episode), so that the error of a long episode is no larger than that of a short one.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = -0.95
"""The furthest that one pair can lead back: at -1 the way back would have no length."""

SATURATED = 0.85
"""Progress beyond which a comparison with the beginning no longer tells moments apart."""

BEHIND = 0.1
"""Progress below minus this: all that is known is that it went backward."""


def step_value(value: Tensor, progress: Tensor) -> Tensor:
    """The value after a pair: v + c (1 - v) forward, and what undoes exactly that backward; within 0 ... 1."""
    progress = progress.clamp(LEAST, 1.0)
    forward = value + progress * (1 - value)
    backward = 1 - (1 - value) / (1 + progress)
    return torch.where(progress >= 0, forward, backward).clamp(0.0, 1.0)


def accumulate(progress: Tensor) -> Tensor:
    """Values [T + 1, ...] from 0, of pair after pair [T, ...]: the reference's, without a correction."""
    values = [torch.zeros_like(progress[0])] if len(progress) else []
    for each in progress:
        values.append(step_value(values[-1], each))
    return torch.stack(values) if values else progress.new_zeros(1)


def work_of(progress: Tensor) -> Tensor:
    """What a pair adds to the work done: -log(1 - c) forward, minus that of the way back backward. Work adds up; value is 1 - exp(-work)."""
    return -progress.sign() * torch.log1p(-progress.abs().clamp(max=-LEAST))


class ValueFilter:
    """Work, and with it the value, of episodes, row by row.

    Args:
        rows: episodes that go on at once.
        floor: least standard deviation that a judgement is believed to have, in progress.
    """

    def __init__(self, rows: int, floor: float = 0.03) -> None:
        self.floor = floor
        self.work, self.variance = torch.zeros(rows), torch.zeros(rows)

    def begin(self, rows: Tensor) -> None:
        """New episodes in the bool [B] ``rows``."""
        self.work[rows], self.variance[rows] = 0.0, 0.0

    def update(self, rows: Tensor, pair: tuple[Tensor, Tensor], whole: tuple[Tensor, Tensor]) -> Tensor:
        """Values [k] of the rows ``rows`` [k] (indices) after new judgements.

        Args:
            rows: which.
            pair: progress [k] since the last moment, and its standard deviation.
            whole: progress [k] since the beginning, and its standard deviation.
        """
        ahead = self.work[rows] + work_of(pair[0])
        expected = self.variance[rows] + self._spread(*pair)
        gain = expected / (expected + self._whole_spread(*whole))
        self.work[rows] = ahead + gain * (work_of(whole[0]) - ahead)
        self.variance[rows] = (1 - gain) * expected
        return self.value[rows]

    def _spread(self, progress: Tensor, std: Tensor) -> Tensor:
        """Variance of the work that a judgement stands for: near the end a little progress is much work."""
        return (std.clamp(min=self.floor) / (1 - progress.abs().clamp(max=-LEAST))).square()

    def _whole_spread(self, progress: Tensor, std: Tensor) -> Tensor:
        """The same since the beginning, which says little near the end, and nothing where the beginning was nearer to it."""
        spread = self._spread(progress, std)
        useless = (progress > SATURATED) | (progress < -BEHIND)
        return torch.where(useless, torch.full_like(spread, 1e6), spread)

    @property
    def value(self) -> Tensor:
        """[B] in 0 ... 1."""
        return (1 - torch.exp(-self.work)).clamp(0.0, 1.0)

    @property
    def std(self) -> Tensor:
        """[B] of the values."""
        return (torch.exp(-self.work) * self.variance.sqrt()).clamp(max=1.0)
