"""Pictures of one draw as another camera mount and another light would show them, all of them alike."""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

COLOURS = tuple(permutations(range(3)))

GUISES = 4 * len(COLOURS)
"""Ways to show a film: mirrored or not, upside down or not, its colours in any order. The first is as it is."""


def augmented(pictures: Tensor, shift: int, light: float, generator: torch.Generator) -> Tensor:
    """Pictures uint8 [G, n, 3, H, W] -> float in 0 ... 1, moved and lit at random, the n of a row alike.

    Args:
        pictures: of G draws.
        shift: pixels at most, edges repeated.
        light: share by which brightness and contrast change at most.
        generator: of the draws.
    """
    values = pictures.float() / 255
    if light:
        gain, bias = (
            1 + light * (2 * torch.rand(2, len(values), 1, 1, 1, 1, generator=generator) - 1)
        ).unbind(0)
        middle = values.mean((1, 2, 3, 4), keepdim=True)
        values = ((values - middle) * gain + middle * bias).clamp(0.0, 1.0)
    if not shift:
        return values
    height, width = values.shape[-2:]
    padded = torch.nn.functional.pad(values.flatten(1, 2), (shift,) * 4, mode="replicate").unflatten(
        1, values.shape[1:3]
    )
    moved = torch.empty_like(values)
    for row, (dy, dx) in enumerate(
        torch.randint(0, 2 * shift + 1, (len(values), 2), generator=generator).tolist()
    ):
        moved[row] = padded[row, ..., dy : dy + height, dx : dx + width]
    return moved


def disguised(pictures: Tensor, guises: Tensor) -> Tensor:
    """Pictures [G, ..., 3, H, W] of G draws as ``guises`` [G], 0 ... ``GUISES`` - 1, show them."""
    if not guises.any():
        return pictures
    rows = []
    for picture, guise in zip(pictures, guises.tolist(), strict=True):
        flips, colours = divmod(guise, len(COLOURS))
        sides = [side for side, bit in ((-1, 1), (-2, 2)) if flips & bit]
        shown = picture[..., list(COLOURS[colours]), :, :]
        rows.append(shown.flip(sides) if sides else shown)
    return torch.stack(rows)
