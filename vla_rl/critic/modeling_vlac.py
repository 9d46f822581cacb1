"""``vlac``: a critic in LeRobot's loops, as any of its reward models."""

from __future__ import annotations

from typing import Any

import torch
from lerobot.rewards.pretrained import PreTrainedRewardModel
from torch import Tensor

from vla_rl.critic.configuration_vlac import VlacConfig
from vla_rl.critic.model import Critic
from vla_rl.errors import UserError
from vla_rl.keys import IMAGES, TASK


class VlacRewardModel(PreTrainedRewardModel):
    """The chance [B] that the task is done, by a critic.

    Args:
        config: names the critic's folder.
    """

    config_class: Any = VlacConfig
    name: Any = "vlac"

    def __init__(self, config: VlacConfig, **_: Any) -> None:
        super().__init__(config)
        self.critic = Critic.load(config.critic, config.device or "cpu")
        self.network = self.critic.network

    def compute_reward(self, batch: dict[str, Any]) -> Tensor:
        """From a camera's pictures [B, 3, H, W], uint8 or float in 0 ... 1, and ``task``, B sentences or one.

        Raises:
            UserError: no picture, or no instruction.
        """
        pictures = _pictures(batch, self.config.camera or next(iter(self.config.input_features or {}), ""))  # type: ignore[attr-defined]
        tasks = batch.get(TASK)
        if not tasks:
            raise UserError("a critic needs the instruction: batch['task']")
        asked = [tasks] * len(pictures) if isinstance(tasks, str) else list(tasks)
        with torch.no_grad():
            return self.critic.done(self.critic.look(pictures), asked)


def _pictures(batch: dict[str, Any], camera: str) -> Tensor:
    keys = [key for key in batch if key.startswith(IMAGES)]
    key = camera if camera in batch else (keys[0] if len(keys) == 1 and not camera else "")
    if not key:
        raise UserError(
            f"no pictures {camera or '(one camera)'} in the batch; it has: {', '.join(keys) or 'none'}"
        )
    pictures = batch[key]
    if pictures.is_floating_point() and float(pictures.max()) > 1.0 + 1e-3:
        raise UserError(f"{key} is float and beyond 1: give uint8, or float in 0 ... 1")
    return pictures
