"""The pieces of PPO over denoising steps, as pure functions (DPPO, arXiv 2409.00588, and its authors' code)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def clip_schedule(steps: int, first: float, last: float, rate: float = 3.0) -> Tensor:
    """Clip range of each trained step [K'], noisiest first: from ``first`` to ``last``, growing exponentially.

    One step has the last's: the reference divides 0 by 0 there.

    Args:
        steps: K'.
        first: of the noisiest step.
        last: of the cleanest.
        rate: how late it grows; 0 is a straight line.
    """
    if steps == 1:
        return torch.tensor([last])
    t = torch.linspace(0, 1, steps)
    share = t if rate == 0 else (torch.exp(rate * t) - 1) / (math.exp(rate) - 1)
    return first + (last - first) * share


def denoising_discount(steps: int, gamma: float) -> Tensor:
    """Weight of the advantage at each trained step [K'], noisiest first: gamma^(K' - 1 - i)."""
    return gamma ** torch.arange(steps - 1, -1, -1)


def clipped_loss(
    new: Tensor, old: Tensor, advantage: Tensor, clip: Tensor, clip_high: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped objective, negated and averaged, and ``approx_kl`` and ``clipped`` (shares).

    Args:
        new: log-probabilities now [B], or of any shape that all have.
        old: when the action was drawn [B].
        advantage: [B].
        clip: half-width of the ratio's trust region [B].
        clip_high: how far it reaches above 1 [B]; None = as far as below.
    """
    above = clip if clip_high is None else clip_high
    difference = new - old
    ratio = difference.exp()
    bounded = torch.maximum(torch.minimum(ratio, 1 + above), 1 - clip)
    loss = -torch.minimum(ratio * advantage, bounded * advantage).mean()
    with torch.no_grad():
        kl = (ratio - 1 - difference).mean()
        share = ((ratio > 1 + above) | (ratio < 1 - clip)).float().mean()
    return loss, {"approx_kl": kl, "clipped": share}


class RewardScale:
    """1 / standard deviation of the discounted sum of rewards, running (as gymnasium's ``NormalizeReward``)."""

    def __init__(self, rows: int, gamma: float = 0.99) -> None:
        self.gamma = gamma
        self.sums = [0.0] * rows
        self.count, self.mean, self.spread = 0, 0.0, 0.0

    def update(self, rewards: list[list[tuple[float, bool]]]) -> None:
        """Of each row, reward and whether the episode ended, in order."""
        for row, sequence in enumerate(rewards):
            for reward, ended in sequence:
                total = self.sums[row] * self.gamma + reward
                self.sums[row] = 0.0 if ended else total
                self.count += 1
                before = total - self.mean
                self.mean += before / self.count
                self.spread += before * (total - self.mean)

    @property
    def scale(self) -> float:
        """1 until anything has been rewarded."""
        return self.scale_of(*self.moments())

    def moments(self) -> tuple[float, float, float]:
        """How many sums there have been, their sum and that of their squares: those of several learners can be added."""
        return self.count, self.count * self.mean, self.spread + self.count * self.mean**2

    @staticmethod
    def scale_of(count: float, total: float, squares: float) -> float:
        """The scale that ``moments`` make."""
        variance = squares / count - (total / count) ** 2 if count else 0.0
        return 1 / math.sqrt(variance) if variance > 1e-8 else 1.0

    def state(self) -> dict[str, object]:
        """For a checkpoint."""
        return {"sums": self.sums, "count": self.count, "mean": self.mean, "spread": self.spread}

    def restore(self, state: dict) -> None:
        """From a checkpoint."""
        self.sums, self.count = list(state["sums"]), state["count"]
        self.mean, self.spread = state["mean"], state["spread"]
