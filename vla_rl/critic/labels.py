"""What a critic should say: progress of pairs, done of pictures (arXiv 2509.15937, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from vla_rl.policies.action_tokens import actions_of

SAME_PIXELS = 0.01
"""Two pictures of which fewer pixels than this share differ show no progress."""

PIXEL = 8
"""Levels of 255 by which a pixel has to differ."""


EARLY = 0.8
"""Share of the way until which it is certainly not done, where the moment of success was not recorded."""


def progress_label(first: Tensor, second: Tensor, end: Tensor) -> Tensor:
    """[B] in -1 ... 1: from moment ``first`` to ``second`` of an episode that succeeds at ``end``, all int64 [B].

    Forward, the share of what remained: (j - i) / (end - i). Backward it is minus the way there, as the reference code
    turns a critic around (``critic_to_value_simple``); the paper's formula taken literally leaves -1 ... 1 near the end.
    """
    first, second = (torch.minimum(each, end) for each in (first, second))
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    share = (high - low) / (end - low).clamp(min=1)
    return torch.where(second >= first, share, -share)


def done_label(moment: Tensor, end: Tensor, success: Tensor, surely_before: float = EARLY) -> Tensor:
    """[B] 1 from the success on, 0 early enough before it or in an episode that fails, NaN in between: nobody can say.

    Args:
        moment: int64 [B].
        end: of the success, or the last moment.
        success: bool [B] of the episode.
        surely_before: share of the way until which it is certainly not done. 1 where the moment of success was recorded: a policy
            that learns from the critic stops where the critic is not sure.
    """
    label = torch.full(moment.shape, torch.nan)
    label[moment < surely_before * end] = 0.0
    label[~success] = 0.0
    label[success & (moment >= end)] = 1.0
    return label


def still(first: Tensor, second: Tensor) -> Tensor:
    """[B] whether two pictures uint8 [B, 3, H, W] show the same."""
    moved = (first.int() - second.int()).abs().amax(1) > PIXEL
    return moved.float().mean((1, 2)) < SAME_PIXELS


def soft_words(values: Tensor, bins: int, width: float) -> Tensor:
    """[B, bins] a Gaussian over the words of -1 ... 1 around ``values`` [B]: neighbours of the right word are nearly right.

    Args:
        values: what is true.
        bins: words.
        width: standard deviation, in the values' units.
    """
    centres = actions_of(torch.arange(bins, device=values.device), bins)
    away = (centres - values[:, None]) / width
    return (-away.square() / 2).softmax(-1)
