"""A vision tower that says where things are (``vla_rl.nn.keypoints``), as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vla_rl.nn.keypoints import KeypointMaps

TOKENS = 4
"""Of each picture."""


class KeypointTower(KeypointMaps):
    """Pictures of a camera -> a few tokens, in place of InternVL's vision transformer and projector: two linear layers on the places.

    Args:
        channels: of ``KeypointMaps``.
        depth: the same.
        keypoints: the same.
        image_size: pixels.
        hidden: D.
    """

    def __init__(self, channels: int, depth: int, keypoints: int, image_size: int, hidden: int) -> None:
        super().__init__(channels, depth, keypoints, (image_size, image_size))
        self.tokens = nn.Sequential(
            nn.Linear(2 * keypoints, 2 * hidden), nn.SiLU(), nn.Linear(2 * hidden, TOKENS * hidden)
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] -> [B, 4, D]."""
        return self.tokens(super().forward(pictures)).unflatten(1, (TOKENS, -1))


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
