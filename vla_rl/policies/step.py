"""What one step of a chain draws from: a Gaussian, or a mixture of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """A Gaussian over chunks, or M of them with weights.

    Attributes:
        mean: [B, T', A']; of a mixture [B, M, T', A'].
        std: standard deviations, broadcast to ``mean``.
        log_weights: logarithms of a mixture's weights [B, M]; None = one Gaussian.
    """

    mean: Tensor
    std: Tensor
    log_weights: Tensor | None = None

    def at_least(self, std: float) -> Step:
        """The same with no deviation below ``std``."""
        return replace(self, std=self.std.clamp(min=std))

    @property
    def centre(self) -> Tensor:
        """[B, T', A'] the mean, of a mixture the likeliest mode's."""
        return self.likeliest[0]

    @property
    def likeliest(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [B, T', A'], of a mixture the likeliest mode's."""
        std = self.std.expand_as(self.mean)
        if self.log_weights is None:
            return self.mean, std
        row, mode = torch.arange(len(self.mean)), self.log_weights.argmax(1)
        return self.mean[row, mode], std[row, mode]

    def one_of_them(self, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of one Gaussian per row, drawn by weight."""
        if self.log_weights is None:
            return self.mean, self.std
        weights = self.log_weights.exp().cpu()
        which = torch.multinomial(weights, 1, generator=generator).squeeze(1).to(self.mean.device)
        row = torch.arange(len(self.mean), device=self.mean.device)
        return self.mean[row, which], self.std.expand_as(self.mean)[row, which]

    def flat(self) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of all modes, row after row [B M, T', A']."""
        std = self.std.expand(
            *self.mean.shape[:2], *self.std.shape[2:]
        )  # may be the same for all steps of a chunk
        return self.mean.flatten(0, 1), std.flatten(0, 1)

    def mixed(self, each: Tensor, count: int) -> Tensor:
        """[B] log-density per element of the mixture.

        Args:
            each: of every mode, per element [B M].
            count: elements.
        """
        assert self.log_weights is not None
        whole = self.log_weights + count * each.view_as(self.log_weights)
        return torch.logsumexp(whole, 1) / count
