"""A vectorised ensemble of MLPs: one batched matrix product per layer instead of a loop of networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class EnsembleMLP(nn.Module):
    """E independent MLPs with layer norm and ReLU (layer norm is what keeps an off-policy critic sane).

    Args:
        members: E.
        inputs: I, width of the input.
        hidden: widths of the hidden layers.
        outputs: O, width of the output.
        layer_norm: False only for ablations.
    """

    def __init__(
        self, members: int, inputs: int, hidden: Sequence[int], outputs: int = 1, *, layer_norm: bool = True
    ) -> None:
        super().__init__()
        self.members, self.layer_norm = members, layer_norm
        sizes = [inputs, *hidden, outputs]
        bounds = [1 / math.sqrt(i) for i in sizes[:-1]]  # nn.Linear's own
        pairs = list(zip(sizes[:-1], sizes[1:], bounds, strict=True))
        self.weights = nn.ParameterList([torch.empty(members, i, o).uniform_(-b, b) for i, o, b in pairs])
        self.biases = nn.ParameterList([torch.empty(members, 1, o).uniform_(-b, b) for _, o, b in pairs])
        scales = hidden if layer_norm else ()
        self.scales = nn.ParameterList([torch.ones(members, 1, h) for h in scales])
        self.shifts = nn.ParameterList([torch.zeros(members, 1, h) for h in scales])

    def forward(self, x: Tensor, members: Tensor | None = None) -> Tensor:
        """Values of all members, or of a subset (nothing is computed for the others).

        Args:
            x: [B, I], shared by all members.
            members: [e] int64 indices; None = all.

        Returns:
            [E or e, B, O].
        """

        def pick(parameter: Tensor) -> Tensor:
            return parameter if members is None else parameter[members]

        last = len(self.weights) - 1
        count = self.members if members is None else len(members)
        x = x.expand(count, *x.shape)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if weight.shape[-1] == 1:  # a product with one column, several times as fast forward and backward
                x = (x * pick(weight).mT.to(x.dtype)).sum(-1, keepdim=True, dtype=weight.dtype) + pick(bias)
            elif torch.compiler.is_compiling():
                # The compiler adds the bias in the pass that cuts off what is below zero.
                x = torch.bmm(x, pick(weight))
                x = x + pick(bias).to(x.dtype)
            else:
                x = torch.baddbmm(pick(bias), x, pick(weight))
            if layer < last:
                if self.layer_norm:
                    # Under autocast in the products' type: its kernels keep sums in float32 anyway.
                    with torch.autocast(x.device.type, enabled=False):
                        shift, scale = (pick(p[layer]).to(x.dtype) for p in (self.shifts, self.scales))
                        x = torch.addcmul(shift, functional.layer_norm(x, x.shape[-1:]), scale)
                x = relu(x, learned=weight.requires_grad)
        return x


def relu(x: Tensor, learned: bool) -> Tensor:
    """``x`` where it is positive, else 0; ``x`` itself may be overwritten.

    Where the layer is not ``learned``, a gradient that goes through it has to know no more of ``x`` than its sign. Compiled for a CPU that
    would be kept as truth values, which the compiler's C++ writes one at a time (ten nanoseconds each, more than the products).
    """
    if torch.compiler.is_compiling() and x.requires_grad and not learned and x.device.type == "cpu":
        return x * x.detach().sign().clamp(min=0)
    return functional.relu(x, inplace=True)


def mlp(
    inputs: int,
    hidden: Sequence[int],
    outputs: int,
    *,
    zero_last: bool = False,
    layer_norm: bool = True,
) -> nn.Sequential:
    """An MLP with layer norm and ReLU; ``zero_last`` makes its first output exactly zero."""
    layers: list[nn.Module] = []
    width = inputs
    for size in hidden:
        layers.append(nn.Linear(width, size))
        if layer_norm:
            layers.append(nn.LayerNorm(size))
        layers.append(nn.ReLU(inplace=True))
        width = size
    last = nn.Linear(width, outputs)
    if zero_last:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


@torch.no_grad()
def polyak(target: nn.Module, source: nn.Module, tau: float) -> None:
    """Target <- (1 - tau) target + tau source, all parameters in one fused call; buffers are copied."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)
    for mine, theirs in zip(target.buffers(), source.buffers(), strict=True):
        mine.copy_(theirs)
