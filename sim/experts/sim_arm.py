"""Scripted expert of the simulated arm's task: a memoryless waypoint controller."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from real.contract import load_contract
from sim.experts.base import Expert
from vla_rl.environment import VlaVectorEnv
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE
from vla_rl.policies.base import Observation

TCP, FINGER = slice(7, 10), 10
HOVER = 0.08  # metres above the cube
HELD = 0.035  # finger positions at which something is between the fingers: between shut and open
GAIN = 0.25  # steps add up on a target that the arm lags by two or three: asking for all of the way would overshoot
OPEN, SHUT = 1.0, -1.0


class SimArmExpert(Expert):
    """Grasps the cube and lifts it.

    Args:
        env: a batch of ``sim.sim_arm.SimArmEnv``.
        **settings: of ``Expert``; noise leaves the gripper alone by default.

    Raises:
        UserError: an arm that is not under ``ee`` control.
    """

    def __init__(self, env: VlaVectorEnv, *, robot: str = "sim_arm", **settings: Any) -> None:
        spec, control = env.env_spec, load_contract(robot).control
        if control.mode != "ee" or spec.action_dim != 4:
            raise UserError(
                f"the expert of {spec.id} acts under control.mode=ee with a gripper: {robot} has not"
            )
        super().__init__(spec, **({"noisy_dims": 3} | settings))
        self.reach = control.translation

    def command(self, observation: Observation) -> Tensor:
        """[B, 4]."""
        state, cube = observation[STATE], observation[ENV_STATE]
        tcp, finger = state[:, TCP], state[:, FINGER]
        aside = (tcp[:, :2] - cube[:, :2]).norm(dim=-1)
        at = (aside < 0.012) & ((tcp[:, 2] - cube[:, 2]).abs() < 0.012)
        held = ((tcp - cube).norm(dim=-1) < 0.025) & (finger < HELD)
        above = cube + torch.tensor([0.0, 0.0, HOVER])
        goal = torch.where((aside < 0.012)[:, None], cube, above)
        goal = torch.where(held[:, None], tcp + torch.tensor([0.0, 0.0, 0.05]), goal)
        step = (goal - tcp) * (GAIN / self.reach)
        step = step * (1.0 / step.norm(dim=-1, keepdim=True).clamp(min=1.0))
        grip = torch.where(at | held, torch.tensor(SHUT), torch.tensor(OPEN))
        return torch.cat([step, grip[:, None]], dim=-1)
