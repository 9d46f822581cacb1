"""Scripted experts for robosuite under ``OSC_POSE`` deltas: memoryless waypoint controllers.

Each is a function of one observation (so it recovers from any state), vectorised over rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sim.experts.base import Expert
from sim.robosuite import TASKS
from vla_rl.environment import VlaVectorEnv
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE, TASK
from vla_rl.policies.base import Observation

REACH = 0.05  # metres that action 1 asks for
TURN = 0.5  # radians that action 1 asks for
GAIN = 2.0  # the arm covers about half of what one control step asks for
OPEN, SHUT = -1.0, 1.0

CAN_BIN = (0.1975, 0.4025)  # middle of the can's compartment, metres
BIN_HALF = (0.06, 0.08)  # well inside its walls
CARRY = 1.02  # height of the can over the walls
CAN_LOW = 0.885  # the can's middle when it may be let go


def _axes(quat: Tensor) -> tuple[Tensor, Tensor]:
    """World directions [B, 3] of a frame's y axis and z axis, from its quaternion [B, 4] (xyzw)."""
    x, y, z, w = quat.unbind(-1)
    side = torch.stack([2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)], -1)
    ahead = torch.stack([2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)], -1)
    return side, ahead


def _turn(state: Tensor, yaw: Tensor | None) -> Tensor:
    """Rotation vector [B, 3] (rad) that points the fingers down and, given ``yaw`` [B], squares them to it."""
    side, ahead = _axes(state[:, 3:7])
    down = torch.tensor([0.0, 0.0, -1.0]).expand_as(ahead)
    turn = torch.linalg.cross(ahead, down)
    if yaw is not None:
        error = yaw - torch.atan2(side[:, 1], side[:, 0])
        quarter = torch.pi / 2
        error = error - quarter * torch.round(error / quarter)
        turn = turn + torch.stack([torch.zeros_like(error), torch.zeros_like(error), error], -1)
    return turn


def _move(
    state: Tensor, target: Tensor, grip: float, yaw: Tensor | None = None, limit: float = 1.0
) -> Tensor:
    """An action [B, 7] that moves the end effector towards ``target`` [B, 3]."""
    step = (target - state[:, :3]) * (GAIN / REACH)
    step = step * (limit / step.norm(dim=-1, keepdim=True).clamp(min=limit))
    turn = (_turn(state, yaw) / TURN).clamp(-0.5, 0.5)
    return torch.cat([step, turn, torch.full_like(step[:, :1], grip)], dim=-1)


def _grasp_then(
    state: Tensor, thing: Tensor, carry: Tensor, width: float, yaw: Tensor | None = None, hover: float = 0.08
) -> Tensor:
    """Grasp ``thing`` [B, 3], which is ``width`` metres wide, then bring it to ``carry`` [B, 3]."""
    hand = state[:, :3]
    opening = state[:, 7] - state[:, 8]
    aside = (hand[:, :2] - thing[:, :2]).norm(dim=-1)
    at = (aside < 0.012) & ((hand[:, 2] - thing[:, 2]).abs() < 0.012)
    held = ((hand - thing).norm(dim=-1) < 0.03) & (opening < width)
    above = thing + torch.tensor([0.0, 0.0, hover])
    reach = torch.where((aside < 0.012)[:, None], thing, above)
    action = _move(state, reach, OPEN, yaw)
    action = torch.where(at[:, None], _move(state, thing, SHUT, yaw, 0.1), action)
    return torch.where(held[:, None], _move(state, carry + (hand - thing), SHUT), action)


def _yaw(quat: Tensor) -> Tensor:
    """Heading [B] (rad) of a frame's y axis."""
    side, _ = _axes(quat)
    return torch.atan2(side[:, 1], side[:, 0])


def lift(state: Tensor, extra: Tensor) -> Tensor:
    """Lift: extra = cube position, quaternion (xyzw), ..."""
    cube = extra[:, :3]
    target = cube.clone()
    target[:, 2] = 0.95
    return _grasp_then(state, cube, target, 0.046, _yaw(extra[:, 3:7]))


def can(state: Tensor, extra: Tensor) -> Tensor:
    """PickPlaceCan: extra = can position, quaternion (xyzw), ..."""
    thing = extra[:, :3]
    inside = ((thing[:, :2] - torch.tensor(CAN_BIN)).abs() < torch.tensor(BIN_HALF)).all(dim=-1)
    over = thing.clone()
    over[:, :2] = torch.tensor(CAN_BIN)
    over[:, 2] = CARRY
    # Up first, then across: the walls of the bins stand between.
    low = (thing[:, 2] < CARRY - 0.06) & ~inside
    over[low, :2] = thing[low, :2]
    over[inside, 2] = CAN_LOW - 0.03
    action = _grasp_then(state, thing, over, 0.062)
    # Open the fingers entirely before rising, or the can comes along.
    rise = torch.where(state[:, 7] - state[:, 8] > 0.07, 0.1, 0.0)
    away = torch.cat([state[:, :2], state[:, 2:3] + rise[:, None]], dim=-1)
    placed = inside & (thing[:, 2] < CAN_LOW)
    return torch.where(placed[:, None], _move(state, away, OPEN), action)


EXPERTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"Lift": lift, "Can": can}


class RobosuiteExpert(Expert):
    """The scripted expert of one task.

    Args:
        env: the environment it is to act in.
        **settings: of ``Expert``; noise leaves rotation and gripper alone by default.

    Raises:
        UserError: a task without expert.
    """

    hand = ((STATE, 0),)

    def __init__(self, env: VlaVectorEnv, **settings: Any) -> None:
        super().__init__(env.env_spec, **({"noisy_dims": 3} | settings))
        self.commands: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
        for id in dict.fromkeys(env.task_ids()):
            if id not in EXPERTS:
                raise UserError(f"no scripted expert for {id}: there is one for {', '.join(EXPERTS)}")
            self.commands[TASKS[id][1]] = EXPERTS[id]

    def command(self, observation: Observation) -> Tensor:
        """[B, 7]; rows are grouped by instruction."""
        state, extra = observation[STATE], observation[ENV_STATE]
        action = torch.zeros(len(state), self.spec.action_dim)
        for instruction, command in self.commands.items():
            rows = torch.tensor([task == instruction for task in observation[TASK]])
            if rows.any():
                action[rows] = command(state[rows], extra[rows])
        return action
