"""Observation standardisation, learned from the first data and then frozen."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Normalizer(nn.Module):
    """x -> clamp((x - mean) / std). Statistics are buffers, so checkpoints carry them.

    Frozen statistics matter off-policy: a mean that moves makes every stored value estimate wrong at once.

    Args:
        width: size of the last dimension.
        clamp: bound of the output, in standard deviations.
        min_std: floor in input units, so that a sensor that hardly moves is not blown up.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor
    frozen: Tensor

    def __init__(self, width: int, clamp: float = 5.0, min_std: float = 1e-2) -> None:
        super().__init__()
        self.clamp, self.min_std = clamp, min_std
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("frozen", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Merge rows [n, width] into the running statistics; does nothing once frozen."""
        if self.frozen or not len(x):
            return
        total = self.count + len(x)
        share = (len(x) / total).to(x.dtype)
        delta = x.mean(0) - self.mean
        variance = x.var(0, correction=0)
        # Parallel merge of two variances (Chan et al.); the first data replaces the initial 0 and 1.
        merged = torch.lerp(self.variance, variance, share) + delta.square() * share * (1 - share)
        self.variance.copy_(merged)
        self.mean.add_(delta * share)
        self.count.copy_(total)

    def freeze(self) -> None:
        """Keep the statistics from now on."""
        self.frozen.fill_(True)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        std = self.variance.sqrt().clamp(min=self.min_std)
        return ((x - self.mean) / std).clamp(-self.clamp, self.clamp)
