"""Convolutions in place of a vision transformer's patches: small objects are found to a fraction of a patch."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn


class ConvStem(nn.Module):
    """In place of InternVL's patch embeddings, after Xiao et al. (arXiv 2106.14881).

    A patch's one linear map can tell a small object's colour but hardly its place inside the patch, and a tower of a few
    layers that is trained on a few thousand pictures never learns it. Convolutions of stride two share what they learn
    between all places. Each but the last, of size one, is followed by a norm over its channels and ReLU.

    Args:
        width: channels after the first convolution; each further one doubles them.
        patch: pixels of a patch, a power of two.
        hidden: D.
    """

    def __init__(self, width: int, patch: int, hidden: int) -> None:
        super().__init__()
        channels = [3, *(width * 2**i for i in range(int(math.log2(patch))))]
        layers: list[nn.Module] = []
        for before, after in zip(channels, channels[1:], strict=False):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(1, after),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], hidden, 1))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] -> [B, (H / patch) (W / patch), D]."""
        return self.layers(pixel_values).flatten(2).transpose(1, 2)


def add_stem(vlm: Any) -> None:
    """Put the stem that ``vision_config.stem`` asks for, channels after its first convolution, into an InternVL."""
    vision = vlm.config.vision_config
    if width := getattr(vision, "stem", 0):
        stem = ConvStem(width, vision.patch_size[0], vision.hidden_size)
        vlm.model.vision_tower.embeddings.patch_embeddings = stem.to(vlm.dtype)
