"""A state value learned by TD on the newest decisions of several iterations, for on-policy learners with little data.

PPO's own way, regression on one iteration's returns, learns a few hundred decisions by heart and says nothing of the
next ones. Here the value is that of the mixture of the newest policies, which small trust regions keep close together.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from vla_rl.data.ring import Ring
from vla_rl.nn.ensemble import polyak


class ReplayedValue:
    """Temporal differences on a ring of decisions.

    Args:
        critic: features [B, F] -> [B, 1].
        features: observations [B] -> features [B, F]; the flag says whether gradients and augmentation are wanted.
        step: takes a loss and makes an optimiser step.
        capacity: decisions kept.
        gamma: discount per decision.
        tau: of the target network.
    """

    def __init__(
        self,
        critic: nn.Module,
        features: Callable[[TensorDict, bool], Tensor],
        step: Callable[[Tensor], None],
        *,
        capacity: int,
        gamma: float,
        tau: float = 0.01,
    ) -> None:
        self.critic, self.features, self.step = critic, features, step
        self.gamma, self.tau = gamma, tau
        self.target = copy.deepcopy(critic).requires_grad_(False)
        self.ring = Ring(capacity)

    def add(self, decisions: TensorDict) -> None:
        """Keep ``observation``, ``next_observation``, ``reward`` and ``terminated`` of decisions [N]."""
        self.ring.append(decisions.select("observation", "next_observation", "reward", "terminated"))

    def fit(self, updates: int, size: int, scale: float, generator: torch.Generator) -> Tensor:
        """Mean loss of ``updates`` steps on ``size`` decisions each.

        Args:
            updates: optimiser steps.
            size: decisions per step.
            scale: rewards are multiplied by this.
            generator: of the draws.
        """
        total = torch.zeros(())
        for _ in range(updates):
            rows = self.ring.sample(size, generator)
            with torch.no_grad():
                ahead = self.target(self.features(rows["next_observation"], True)).squeeze(-1)
                goal = (rows["reward"] * scale).to(ahead) + self.gamma * ~rows["terminated"].to(
                    ahead.device
                ) * ahead
            value = self.critic(self.features(rows["observation"], True)).squeeze(-1)
            loss = (value - goal).square().mean()
            self.step(loss)
            polyak(self.target, self.critic, self.tau)
            total += loss.detach().cpu()
        return total / max(1, updates)

    def save(self, folder: Path) -> None:
        """The ring; the target network is among the learner's modules."""
        self.ring.save(folder)

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote."""
        self.ring.load(folder)
