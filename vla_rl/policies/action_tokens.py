"""Actions as words: every number of a chunk becomes one of a few hundred bins (OpenVLA, arXiv 2406.09246)."""

from __future__ import annotations

import torch
from torch import Tensor


def tokens_of(actions: Tensor, bins: int) -> Tensor:
    """Bins int64 of the same shape, 0 ... ``bins`` - 1, of normalised actions; beyond -1 ... 1 the outermost."""
    return ((actions + 1) * (bins / 2)).floor().long().clamp(0, bins - 1)


def actions_of(tokens: Tensor, bins: int) -> Tensor:
    """Middle of each bin, float32: within half a bin, 1 / ``bins``, of the number it came from."""
    return (tokens.float() + 0.5) * (2 / bins) - 1


def around(actions: Tensor, width: Tensor | float, bins: int) -> Tensor:
    """Log-probabilities [..., bins] of a Gaussian over the bins about each of ``actions`` [...], normalised.

    Args:
        actions: beyond -1 ... 1 the outermost bin.
        width: standard deviation in the same units, one number or [...].
        bins: words.
    """
    place = ((actions + 1) * (bins / 2) - 0.5).clamp(0, bins - 1)
    far = torch.as_tensor(width).to(place) * (bins / 2)
    away = (torch.arange(bins).to(place) - place[..., None]) / far[..., None]
    return (-away.square() / 2).log_softmax(-1)


class BinWords:
    """One word per number of a chunk [T, A], time step by time step.

    Args:
        bins: words.
        shape: (T, A).
    """

    end: int | None = None
    """The word that ends a chunk; None: all have the same length."""

    def __init__(self, bins: int, shape: tuple[int, int]) -> None:
        self.size, self.shape = bins, shape
        self.count = shape[0] * shape[1]
        self.identity = f"{bins} bins"
        """Two vocabularies of one identity mean the same by a word."""

    def encode(self, chunks: Tensor) -> Tensor:
        """Words [B, T A] of normalised chunks [B, T, A]."""
        return tokens_of(chunks, self.size).flatten(1)

    def decode(self, words: Tensor) -> Tensor:
        """Normalised chunks [B, T, A] of words [B, N]: of the first time steps; the rest is the middle of the range."""
        rest = words.new_full((len(words), self.count - words.shape[1]), self.size // 2)
        return actions_of(torch.cat([words, rest], 1).view(-1, *self.shape), self.size)

    def said(self, words: Tensor) -> Tensor:
        """[B, N] bool: all of them."""
        return torch.ones_like(words, dtype=torch.bool)


def log_probs_of(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy [...] of ``tokens`` [...] under ``logits`` [..., bins] at a temperature."""
    scaled = (logits / temperature).float().log_softmax(-1)
    chosen = scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen, -(scaled.exp() * scaled).sum(-1)


def kl(here: Tensor, there: Tensor) -> Tensor:
    """[...] divergence KL(here || there) of log-probabilities [..., bins], exact over the words."""
    return (here.exp() * (here - there)).sum(-1)


def drawn(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """A token [B] per row of ``logits`` [B, bins]; the likeliest at temperature 0.

    Drawn by inverting the distribution with one uniform number per row: the same on every device.
    """
    if temperature == 0:
        return logits.argmax(-1)
    cumulated = (logits / temperature).double().softmax(-1).cumsum(-1)
    place = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64).to(logits.device)
    return (cumulated < place * cumulated[:, -1:]).sum(-1).clamp(max=logits.shape[-1] - 1)
