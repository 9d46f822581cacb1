"""What keeps a policy from living off the faults of a learned reward."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from vla_rl.errors import UserError

SHAPINGS = ("none", "potential", "clip", "delta", "unguarded")


def shaped(
    kind: str, before: Tensor, after: Tensor, best: Tensor, over: Tensor, gamma: float | Tensor, limit: float
) -> Tensor:
    """Reward [k] for a value that went from ``before`` to ``after``.

    ``potential`` is gamma V' - V, with V' = 0 where the episode ends: it leaves the best policy what it is (Ng et al. 1999).
    ``clip`` bounds the change, which a single wrong judgement then cannot exceed. ``delta`` pays only what goes beyond the
    episode's best so far, so that going back and forth earns nothing. ``unguarded`` pays every rise and charges no fall: what a
    sum of positive progress does, and what gets exploited. ``none``: nothing but done.

    Args:
        kind: of ``SHAPINGS``.
        before: values at the last judgement.
        after: now.
        best: the largest so far, this one not included.
        over: bool [k], the episode ends in success, as the critic believes.
        gamma: discount between two judgements, one or [k].
        limit: of ``clip``.
    """
    if kind == "none":
        return torch.zeros_like(after)
    if kind == "potential":
        return gamma * torch.where(over, torch.zeros_like(after), after) - before
    if kind == "clip":
        return (after - before).clamp(-limit, limit)
    if kind == "delta":
        return (after - best).clamp(min=0.0)
    return (after - before).clamp(min=0.0)


class Agreement:
    """Done only when several judgements in a row agree.

    Args:
        rows: episodes at once.
        count: judgements that have to agree.
    """

    def __init__(self, rows: int, count: int) -> None:
        if count < 1:
            raise UserError(f"reward.agree={count} must be at least 1")
        self.count = count
        self.streak = torch.zeros(rows, dtype=torch.long)

    def begin(self, rows: Tensor) -> None:
        """New episodes in the bool [B] ``rows``."""
        self.streak[rows] = 0

    def update(self, rows: Tensor, said: Tensor) -> Tensor:
        """Bool [k]: agreed, for rows ``rows`` [k] (indices) whose newest judgement is ``said`` bool [k]."""
        self.streak[rows] = torch.where(said, self.streak[rows] + 1, 0)
        return self.streak[rows] >= self.count


class Audit:
    """Believed beside true success, where somebody knows the truth; and whether the critic says anything at all.

    Args:
        window: episodes looked back on.
        limit: share of the believed successes that may be false before training should stop.
        least: believed successes before that is judged.
    """

    def __init__(self, window: int = 50, limit: float = 0.5, least: int = 15) -> None:
        self.limit, self.least = limit, least
        self.episodes: deque[tuple[bool, bool, float, float]] = deque(maxlen=window)

    def ended(self, believed: bool, true: bool, value: float, spread: float) -> None:
        """An episode is over; ``spread`` is the range of its values."""
        self.episodes.append((believed, true, value, spread))

    def metrics(self) -> dict[str, float]:
        """Of the window: shares of believed and true success, of the believed that were none, of the true that were missed; mean value at the end."""
        if not self.episodes:
            return {}
        believed, true, value, _ = zip(*self.episodes, strict=True)
        count, called, succeeded = len(self.episodes), sum(believed), sum(true)
        missed = sum(t and not b for b, t in zip(believed, true, strict=True))
        false = sum(b and not t for b, t in zip(believed, true, strict=True))
        return {
            "believed": called / count,
            "true": succeeded / count,
            "false_done": false / called if called else 0.0,
            "missed": missed / succeeded if succeeded else 0.0,
            "value": sum(value) / count,
        }

    def trusts(self) -> bool:
        """Whether the critic has been right often enough of late: fewer false successes than half of what stops training."""
        called = sum(believed for believed, *_ in self.episodes)
        few = self.metrics().get("false_done", 0.0) <= self.limit / 2 or called < self.least
        return few and self.verdict() is None

    def verdict(self) -> str | None:
        """Why training should stop; None = it may go on."""
        from vla_rl.critic.metrics import FLAT

        full = len(self.episodes) >= max(self.least, 1)
        if full and all(spread < FLAT for *_, spread in self.episodes):
            return "the critic says the same to every picture: it does not know this camera, arm or task"
        called = sum(believed for believed, *_ in self.episodes)
        false = self.metrics().get("false_done", 0.0)
        if called >= self.least and false > self.limit:
            return (
                f"{false:.0%} of the last {called} successes that the critic believed in were none: the policy exploits it "
                "(raise reward.threshold or reward.agree, or train the critic on these episodes)"
            )
        return None
