"""``vlac``: the critic as a LeRobot reward model; names as LeRobot's factory looks for them."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs.rewards import RewardModelConfig


@RewardModelConfig.register_subclass("vlac")
@dataclass
class VlacConfig(RewardModelConfig):
    """Of ``VlacRewardModel``.

    Attributes:
        critic: folder of ``vla-rl critic train``.
        camera: feature key of the pictures; "" = the only one of ``input_features``, or of the batch.
    """

    critic: str = ""
    camera: str = ""
