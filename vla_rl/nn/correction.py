"""Networks of a correction to candidate actions: its actor, and critics of many candidates at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vla_rl.nn.ensemble import EnsembleMLP, mlp


class Actor(nn.Module):
    """Correction in (-1, 1) for every candidate, from features and the candidate itself; zero at first."""

    def __init__(self, features: int, actions: int, hidden: Sequence[int], layer_norm: bool = True) -> None:
        super().__init__()
        self.net = mlp(features + actions, hidden, actions, zero_last=True, layer_norm=layer_norm)

    def forward(self, features: Tensor, base: Tensor) -> Tensor:
        """[B, F], [B, N, A] -> [B, N, A]."""
        return torch.tanh(self.net(with_actions(features, base)))


def with_actions(features: Tensor, actions: Tensor) -> Tensor:
    """[B, F], [B, M, A] -> [B, M, F + A]."""
    return torch.cat([features[:, None].expand(-1, actions.shape[1], -1), actions], dim=-1)


def critic_values(
    critic: EnsembleMLP, features: Tensor, actions: Tensor, members: Tensor | None = None
) -> Tensor:
    """[E, B, M] values of normalised ``actions`` [B, M, A]."""
    x = with_actions(features, actions)
    return critic(x.flatten(0, 1), members).view(-1, *x.shape[:2])
