"""A vectorised ensemble of MLPs: one batched matrix product per layer instead of a loop of networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class EnsembleLinear(nn.Module):
    """E independent linear layers: [E, B, I] -> [E, B, O]."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """[E, B, I] -> [E, B, O]."""
        return torch.baddbmm(self.bias, x, self.weight)


class EnsembleNorm(nn.Module):
    """E independent layer norms over the last dimension of [E, B, D]."""

    def __init__(self, members: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, 1, width))
        self.bias = nn.Parameter(torch.zeros(members, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """[E, B, D] -> [E, B, D]."""
        normal = nn.functional.layer_norm(x, x.shape[-1:])
        return torch.addcmul(self.bias, normal, self.weight)


class EnsembleMLP(nn.Module):
    """E independent MLPs with layer norm and ReLU (layer norm is what keeps a critic sane off-policy).

    Args:
        members: E.
        inputs: width of the input.
        hidden: widths of the hidden layers.
        outputs: width of the output.
    """

    def __init__(self, members: int, inputs: int, hidden: tuple[int, ...], outputs: int = 1) -> None:
        super().__init__()
        self.members = members
        layers: list[nn.Module] = []
        width = inputs
        for size in hidden:
            layers += [EnsembleLinear(members, width, size), EnsembleNorm(members, size), nn.ReLU(inplace=True)]
            width = size
        layers.append(EnsembleLinear(members, width, outputs))
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[B, I], shared by all members -> [E, B, O]."""
        return self.net(x.expand(self.members, *x.shape))


def mlp(inputs: int, hidden: tuple[int, ...], outputs: int, *, zero_last: bool = False) -> nn.Sequential:
    """An MLP with layer norm and ReLU; ``zero_last`` makes its first output exactly zero."""
    layers: list[nn.Module] = []
    width = inputs
    for size in hidden:
        layers += [nn.Linear(width, size), nn.LayerNorm(size), nn.ReLU(inplace=True)]
        width = size
    last = nn.Linear(width, outputs)
    if zero_last:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


@torch.no_grad()
def polyak(target: nn.Module, source: nn.Module, tau: float) -> None:
    """target <- (1 - tau) target + tau source, all parameters in one fused call."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)
