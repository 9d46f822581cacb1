"""LeRobot's reward models (success classifier, SARM, Robometer, TOPReward) with the questions of a critic.

A score of pictures in 0 ... 1 becomes progress by differences, and done where it is high.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.rewards import RewardModelConfig
from lerobot.rewards.pretrained import PreTrainedRewardModel
from torch import Tensor

import vla_rl.critic.configuration_vlac  # noqa: F401  ours is one of them
from vla_rl.critic.model import BATCH
from vla_rl.critic.trajectories import Trajectory
from vla_rl.errors import UserError
from vla_rl.keys import IMAGES, TASK


class RewardModelCritic:
    """A LeRobot reward model with the questions of a critic.

    Args:
        model: gives a score of pictures; scores in 0 ... 1 are taken as the value.
        camera: feature key that it reads the pictures under.
        skip: control steps between judgements.
        threshold: score from which the task counts as done.
        before: its processor, from a batch to what the model takes; None = nothing is to be done.
    """

    def __init__(
        self,
        model: PreTrainedRewardModel,
        camera: str,
        *,
        skip: int = 5,
        threshold: float = 0.5,
        before: Any = None,
    ) -> None:
        self.model, self.camera, self.before = model.eval(), camera, before
        self.notes: dict[str, Any] = {
            "skip": skip,
            "threshold": threshold,
            "references": 2,
            "image": None,
            "tasks": [],
        }
        self.device = torch.device(model.config.device or "cpu")

    @classmethod
    def load(cls, path: Path, device: str = "cpu", **settings: Any) -> RewardModelCritic:
        """A reward model's folder.

        Raises:
            UserError: it does not load.
        """
        from lerobot.rewards.factory import make_reward_model

        from vla_rl.policies.lerobot_folder import first_line

        try:
            config = RewardModelConfig.from_pretrained(str(path))
            config.device, config.pretrained_path = device, str(path)
            model = make_reward_model(config)
        except Exception as error:  # a type that needs another package, weights that do not fit
            raise UserError(f"{path} does not load as a LeRobot reward model: {first_line(error)}") from error
        keys = [key for key in config.input_features or {} if key.startswith(IMAGES)]
        return cls(model, keys[0] if keys else f"{IMAGES}camera", **settings)

    def check_size(self, pictures: Tensor) -> None:
        """Its processor takes any."""

    def look(self, pictures: Tensor) -> Tensor:
        """The pictures themselves; they are looked at when a question is asked."""
        return pictures

    def refer(self, reference: Trajectory) -> Tensor:
        """Refused: these models take none.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"a {self.model.config.type} reward model takes no reference: set reward.references=[]"
        )

    def progress(
        self, first: Tensor, second: Tensor, tasks: Sequence[str], reference: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What of the way that was left has been made, from the two scores; deviations are unknown and set to a tenth."""
        one, other = (self.done(part, tasks) for part in (first, second))
        ahead = (other - one) / (1 - one).clamp(min=0.05)
        back = (other - one) / (1 - other).clamp(min=0.05)
        change = torch.where(other >= one, ahead, back).clamp(-1.0, 1.0)
        return change, torch.full_like(change, 0.1)

    @torch.no_grad()
    def done(self, seen: Tensor, tasks: Sequence[str], reference: Tensor | None = None) -> Tensor:
        """[B] the model's score of pictures uint8 [B, 3, H, W]."""
        scores = []
        for start in range(0, len(seen), BATCH):
            part = slice(start, start + BATCH)
            batch: Any = {self.camera: seen[part].float() / 255, TASK: list(tasks[part])}
            scores.append(
                self.model.compute_reward(self.before(batch) if self.before else batch).float().cpu()
            )
        return torch.cat(scores).clamp(0.0, 1.0)
