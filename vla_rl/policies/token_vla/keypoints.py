"""A vision tower that says where things are: convolutions and the mean place of each of their maps (spatial softmax)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

TOKENS = 4
"""Of each picture."""

NORMED = 8
"""Channels that are normalised together."""


class KeypointTower(nn.Module):
    """Pictures of a camera -> a few tokens, in place of InternVL's vision transformer and projector (Levine et al., arXiv 1504.00702).

    Convolutions to a quarter of the picture's size, then ``keypoints`` maps, each reduced to the place of its mass (LeRobot's
    ``SpatialSoftmax``), which is known to a fraction of a pixel; two linear layers make tokens of the places. Of a few thousand
    pictures it learns where small objects are much better than patches do.

    Args:
        channels: of every convolution, a multiple of 8.
        depth: convolutions at a quarter of the picture's size, after two of stride two.
        keypoints: maps.
        image_size: pixels.
        hidden: D.
    """

    def __init__(self, channels: int, depth: int, keypoints: int, image_size: int, hidden: int) -> None:
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
        size = -(-image_size // 4)
        self.maps = nn.Sequential(*layers)
        self.places = SpatialSoftmax((channels, size, size), num_kp=keypoints)
        self.tokens = nn.Sequential(
            nn.Linear(2 * keypoints, 2 * hidden), nn.SiLU(), nn.Linear(2 * hidden, TOKENS * hidden)
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] -> [B, 4, D]."""
        return self.tokens(self.places(self.maps(pixel_values)).flatten(1)).unflatten(1, (TOKENS, -1))


class KeypointTowers(nn.Module):
    """A ``KeypointTower`` for each camera: what a thing looks like, and where, differs from one to the other.

    Args:
        towers: one per camera, in the policy's order.
    """

    def __init__(self, towers: Sequence[KeypointTower]) -> None:
        super().__init__()
        self.cameras = nn.ModuleList(towers)

    def forward(self, pixel_values: Tensor, camera: int = 0) -> Tensor:
        """Pictures [B, 3, H, W] of a camera -> [B, 4, D]."""
        return self.cameras[camera](pixel_values)


def add_keypoints(vlm: Any) -> None:
    """Put the towers that ``vision_config.keypoints`` asks for, of ``vision_config.cameras``, into an InternVL; they need no projector."""
    vision = vlm.config.vision_config
    if keypoints := getattr(vision, "keypoints", 0):
        width, depth = vision.hidden_size, vision.num_hidden_layers
        hidden = vlm.config.text_config.hidden_size
        size = vision.image_size[0]
        towers = [KeypointTower(width, depth, keypoints, size, hidden) for _ in range(vision.cameras)]
        vlm.model.vision_tower = KeypointTowers(towers).to(vlm.dtype)
        vlm.model.multi_modal_projector = nn.Identity()
