"""Where things are in a picture: convolutions, and the mean place of each of their maps (Levine et al., arXiv 1504.00702)."""

from __future__ import annotations

from torch import Tensor, nn

NORMED = 8
"""Channels that are normalised together."""


class KeypointMaps(nn.Module):
    """Convolutions to a quarter of the picture's size, then maps, each reduced to the place of its mass (LeRobot's ``SpatialSoftmax``).

    A place is known to a fraction of a pixel, and of a few thousand pictures it is learned for small objects much better than from patches.

    Args:
        channels: of every convolution, a multiple of 8.
        depth: convolutions at a quarter of the picture's size, after two of stride two.
        keypoints: maps.
        size: of the pictures (height, width).
    """

    def __init__(self, channels: int, depth: int, keypoints: int, size: tuple[int, int]) -> None:
        super().__init__()
        from lerobot.policies.diffusion.modeling_diffusion import SpatialSoftmax

        layers: list[nn.Module] = []
        for place in range(2 + depth):
            before, stride = (channels if place else 3), (2 if place < 2 else 1)
            layers += [
                nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False),
                nn.GroupNorm(NORMED, channels),
                nn.SiLU(inplace=True),
            ]
        height, width = (-(-side // 4) for side in size)
        self.maps = nn.Sequential(*layers)
        self.places = SpatialSoftmax((channels, height, width), num_kp=keypoints)

    def forward(self, pictures: Tensor) -> Tensor:
        """Normalised pictures [B, 3, H, W] -> [B, 2 * keypoints], (x, y) of each in -1 ... 1."""
        return self.places(self.maps(pictures)).flatten(1)
