"""A number in [0, 1] as a distribution over bins: two-hot targets, read as the mean (C51's support, arXiv 1707.06887)."""

from __future__ import annotations

import torch
from torch import Tensor


def two_hot(value: Tensor, bins: int) -> Tensor:
    """[B] in [0, 1] -> [B, bins]: the two neighbouring bins share each value, so that their mean is it."""
    place = value.clamp(0, 1) * (bins - 1)
    low = place.floor().clamp(max=bins - 2)
    share = (place - low)[:, None]
    low = low.long()[:, None]
    target = torch.zeros(len(value), bins, dtype=value.dtype, device=value.device)
    return target.scatter_(1, low, 1 - share).scatter_(1, low + 1, share)


def mean_of(logits: Tensor) -> Tensor:
    """[..., bins] -> [...], the mean of the distribution."""
    support = torch.linspace(0, 1, logits.shape[-1], device=logits.device, dtype=logits.dtype)
    return (logits.softmax(-1) * support).sum(-1)
