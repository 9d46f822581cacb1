"""SAC's actor: a Gaussian squashed into the box (-1, 1) (arXiv 1801.01290, appendix C)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_rl.nn.ensemble import mlp

LOG_STD = (-5.0, 2.0)


class SquashedGaussian(nn.Module):
    """Features [B, F] -> actions [B, D] in (-1, 1) and their log-densities [B].

    Args:
        inputs: F.
        hidden: widths.
        outputs: D.
        layer_norm: False only for ablations.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, *, layer_norm: bool = True) -> None:
        super().__init__()
        self.outputs = outputs
        self.net = mlp(inputs, hidden, 2 * outputs, layer_norm=layer_norm)

    def noise(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count, D] standard normal, on the network's device whatever the generator's."""
        device = next(self.parameters()).device
        source = generator.device if generator is not None else device
        return torch.randn(count, self.outputs, generator=generator, device=source).to(device)

    def forward(self, features: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The draw that standard normal ``noise`` [B, D] makes, or (None) the centre; log-densities are of the draw in the box."""
        mean, log_std = self.net(features).float().chunk(2, dim=-1)
        log_std = log_std.clamp(*LOG_STD)
        raw = mean if noise is None else mean + log_std.exp() * noise
        # log(1 - tanh(u)^2), without its loss of digits at large u
        squash = 2 * (math.log(2) - raw - functional.softplus(-2 * raw))
        density = -0.5 * ((raw - mean) / log_std.exp()).square() - log_std - 0.5 * math.log(2 * math.pi)
        return torch.tanh(raw), (density - squash).sum(-1)
