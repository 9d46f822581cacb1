"""Observation standardisation, learned from the first data and then frozen."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Normalizer(nn.Module):
    """x -> clamp((x - mean) / std). Statistics are buffers, so checkpoints carry them.

    Args:
        width: size of the last dimension.
        clamp: bound of the output.
        min_std: floor in input units, so that a sensor that hardly moves is not blown up.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, clamp: float = 5.0, min_std: float = 1e-2) -> None:
        super().__init__()
        self.clamp, self.min_std = clamp, min_std
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Set the statistics from rows [n, width]."""
        self.mean.copy_(x.mean(0))
        self.std.copy_(x.std(0, correction=0).clamp(min=self.min_std))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return ((x - self.mean) / self.std).clamp(-self.clamp, self.clamp)
