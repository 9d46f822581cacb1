"""A policy that fails when it is told to, for fault campaigns."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict

from real.robot_env import RobotEnv
from sim.experts.sim_arm import SimArmExpert
from vla_rl.policies.base import Observation

FAULT = "/vla_rl/bench/fault"
"""std_msgs/String: ``nan_action``, ``huge_action`` or ``exception``, once each."""


class Unreliable(SimArmExpert):
    """The scripted expert, until ``FAULT`` says otherwise for one step.

    Args:
        env: the robot, whose node listens.
        **settings: of ``SimArmExpert``.
    """

    def __init__(self, env: RobotEnv, **settings: Any) -> None:
        from std_msgs.msg import String

        super().__init__(env, **settings)
        self.fault = ""
        env.link.listen(FAULT, String, self._hear)

    def _hear(self, message: Any) -> None:
        self.fault = message.data

    def act(
        self, observation: Observation, state: TensorDict, *, deterministic: bool = False
    ) -> tuple[TensorDict, TensorDict]:
        """As the expert, or broken."""
        output, after = super().act(observation, state, deterministic=deterministic)
        fault, self.fault = self.fault, ""
        if fault == "nan_action":
            output["action"] = torch.full_like(output["action"], float("nan"))
        elif fault == "huge_action":
            output["action"] = 1e6 * output["action"].sign()
        elif fault == "exception":
            raise RuntimeError("the policy broke, as it was told to")
        return output, after
