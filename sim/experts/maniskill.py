"""Scripted experts for ManiSkill under ``ee`` and ``ee_pose`` control: memoryless waypoint controllers.

Each is a function of one observation (so it recovers from any state), vectorised over rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sim.experts.base import Expert
from sim.maniskill import CONTROLS, GRIPPER, INSTRUCTIONS
from vla_rl.environment import VlaVectorEnv
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE
from vla_rl.policies.base import Observation

OPEN, SHUT = GRIPPER[1], GRIPPER[0]
TCP = slice(9, 12)
QVEL = 9  # length of the joint-velocity prefix of observation.environment_state
FINGER_SPEED = slice(23, 25)  # in proprioception [16] followed by joint velocities [9]
HOVER = 0.10  # metres above the table at which the arm travels
MAX_STEP = 0.03  # metres of TCP travel per control step
DAMPED = 0.4
PEG_X = -0.22  # metres: where pegs are stood up


def _towards(
    tcp: Tensor, target: Tensor, grip: Tensor, max_step: float = MAX_STEP, gain: float = 1.0
) -> Tensor:
    """A [B, 4] action that moves the TCP towards ``target`` [B, 3] with finger target ``grip`` [B].

    The arm swings through its target by about as much as one step asks for: a ``gain`` below one damps that.
    """
    delta = gain * (target - tcp)
    length = delta.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    return torch.cat([delta * (length.clamp(max=max_step) / length), grip[:, None]], dim=-1)


def _at(position: Tensor, x: float | Tensor = 0.0, y: float = 0.0, z: float | Tensor | None = None) -> Tensor:
    """``position`` [B, 3] shifted by x, y; z replaced when given."""
    out = position.clone()
    out[:, 0] += x
    out[:, 1] += y
    if z is not None:
        out[:, 2] = z
    return out


def slide(state: Tensor, cube: Tensor, direction: float) -> Tensor:
    """Push (+1) or drag (-1) a cube [B, 3] along x with shut fingers."""
    tcp = state[:, TCP]
    ahead = (cube[:, 0] - tcp[:, 0]) * direction  # positive: the fingers are on the pushing side
    aside = (cube[:, 1] - tcp[:, 1]).abs()
    low = tcp[:, 2] < 0.035
    shut = torch.full_like(ahead, SHUT)
    ready = (ahead > 0.015) & (aside < 0.02)
    over = (ahead > 0.04) & (aside < 0.015)
    push = _towards(tcp, _at(cube, 0.1 * direction, z=0.02), shut)
    lower = _towards(tcp, _at(cube, -0.065 * direction, z=0.02), shut)
    travel = _towards(tcp, _at(cube, -0.065 * direction, z=HOVER), shut)
    return torch.where((ready & low)[:, None], push, torch.where(over[:, None], lower, travel))


def grasp_then(state: Tensor, cube: Tensor, goal: Tensor, gain: float = 1.0) -> Tensor:
    """Grasp a cube [B, 3], then carry it to ``goal`` [B, 3]."""
    tcp = state[:, TCP]
    width = state[:, 7] + state[:, 8]
    near = (tcp[:, :2] - cube[:, :2]).norm(dim=-1) < 0.012
    at = near & ((tcp[:, 2] - cube[:, 2]).abs() < 0.012)
    # A cube may be held across its diagonal: then the fingers have come to rest, or it has left the table.
    rest = (state[:, FINGER_SPEED].sum(dim=-1).abs() < 0.1) | (cube[:, 2] > 0.024)
    shut_on = (width < 0.0445) | ((width < 0.06) & rest)
    held = ((tcp - cube).norm(dim=-1) < 0.022) & shut_on
    is_open = torch.full_like(width, OPEN)
    shut = torch.full_like(width, SHUT)
    carry = _towards(tcp, goal + (tcp - cube), shut, gain=gain)
    close = _towards(tcp, cube, shut, 0.005)
    lower = _towards(tcp, cube, is_open, gain=gain)
    travel = _towards(tcp, _at(cube, z=HOVER), is_open, gain=gain)
    return torch.where(
        held[:, None],
        carry,
        torch.where(at[:, None], close, torch.where(near[:, None], lower, travel)),
    )


def push_cube(state: Tensor, extra: Tensor) -> Tensor:
    """PushCube: extra = goal [3], cube pose [7]."""
    return slide(state, extra[:, 3:6], 1.0)


def pull_cube(state: Tensor, extra: Tensor) -> Tensor:
    """PullCube: extra = goal [3], cube pose [7]."""
    return slide(state, extra[:, 3:6], -1.0)


def table_push(state: Tensor, extra: Tensor) -> Tensor:
    """TablePushCube: extra = cube pose [7], velocity [3]."""
    return slide(state, extra[:, :3], 1.0)


def table_pull(state: Tensor, extra: Tensor) -> Tensor:
    """TablePullCube: extra = cube pose [7], velocity [3]."""
    return slide(state, extra[:, :3], -1.0)


def table_lift(state: Tensor, extra: Tensor) -> Tensor:
    """TableLiftCube: extra = cube pose [7], velocity [3]."""
    cube = extra[:, :3]
    return grasp_then(state, cube, _at(cube, z=0.18))


def pick_cube(state: Tensor, extra: Tensor) -> Tensor:
    """PickCube: extra = grasped, goal [3], cube pose [7], ..."""
    return grasp_then(state, extra[:, 4:7], extra[:, 1:4], DAMPED)


def stack_cube(state: Tensor, extra: Tensor) -> Tensor:
    """StackCube: extra = cube A pose [7], cube B pose [7], ..."""
    a, b = extra[:, :3], extra[:, 7:10]
    tcp = state[:, TCP]
    aside = (a[:, :2] - b[:, :2]).norm(dim=-1)
    # Lift before crossing over so that A never knocks B over, then press it down: what aims at its height hovers there.
    height = torch.where(aside < 0.012, torch.full_like(aside, 0.05), torch.full_like(aside, 0.10))
    goal = _at(b, z=height)
    low = (a[:, 2] < 0.08) & (aside > 0.03)
    goal = torch.where(low[:, None], _at(a, z=0.10), goal)
    action = grasp_then(state, a, goal, DAMPED)
    placed = (aside < 0.02) & ((a[:, 2] - b[:, 2] - 0.04).abs() < 0.004)
    release = _towards(tcp, _at(tcp, z=tcp[:, 2]), torch.full_like(aside, OPEN))
    gone = placed & (state[:, 7] + state[:, 8] > 0.06)
    up = _towards(tcp, _at(tcp, z=0.2), torch.full_like(aside, OPEN))
    action = torch.where(placed[:, None], release, action)
    return torch.where(gone[:, None], up, action)


def _peg_angle(quat: Tensor) -> Tensor:
    """How far the peg's long axis has been pitched down from lying along x, in radians, from [B, 4] (wxyz)."""
    w, x, y, z = quat.unbind(-1)
    return torch.atan2(2 * (w * y - x * z), 1 - 2 * (y * y + z * z))


def lift_peg(state: Tensor, extra: Tensor) -> Tensor:
    """LiftPegUpright under ``ee_pose``: extra = peg pose [7]. Grasp the middle, raise, pitch up, set down."""
    # Fingers pitch towards the robot: the other way the wrist meets its limit at 60 degrees.
    peg, angle = extra[:, :3], _peg_angle(extra[:, 3:7])
    tcp = state[:, TCP]
    width = state[:, 7] + state[:, 8]
    near = (tcp[:, :2] - peg[:, :2]).norm(dim=-1) < 0.012
    at = near & ((tcp[:, 2] - peg[:, 2]).abs() < 0.012)
    rest = (state[:, FINGER_SPEED].sum(dim=-1).abs() < 0.1) | (peg[:, 2] > 0.03)
    held = ((tcp - peg).norm(dim=-1) < 0.03) & (width < 0.056) & rest
    is_open, shut = torch.full_like(width, OPEN), torch.full_like(width, SHUT)
    # Standing, the middle is 0.12 m up; it must be higher than that while the lower end swings down.
    left = torch.pi / 2 - angle
    height = 0.118 + 0.06 * ((left.abs() - 0.06) / 0.2).clamp(0, 1)
    stand = _at(peg, z=height)
    # Near the robot: a hand lying flat far out would need a longer arm.
    stand[:, 0] = torch.where(left.abs() < 0.25, peg[:, 0], torch.full_like(left, PEG_X))
    carry = _towards(tcp, stand + (tcp - peg), shut, gain=DAMPED)
    close = _towards(tcp, peg, shut, 0.005)
    lower = _towards(tcp, peg, is_open, gain=DAMPED)
    travel = _towards(tcp, _at(peg, z=HOVER + 0.03), is_open, gain=DAMPED)
    move = torch.where(
        held[:, None],
        carry,
        torch.where(at[:, None], close, torch.where(near[:, None], lower, travel)),
    )
    high_enough = peg[:, 2] > 0.004 + 0.12 * torch.sin(angle.clamp(0.2, 1.57))
    ready = held & high_enough & (peg[:, 0] < PEG_X + 0.08)
    pitch = torch.where(ready, (DAMPED * left).clamp(-0.1, 0.1), torch.zeros_like(left))
    turn = torch.stack([torch.zeros_like(pitch), pitch, torch.zeros_like(pitch)], dim=-1)
    return torch.cat([move[:, :3], turn, move[:, 3:]], dim=-1)


EXPERTS: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    # id: (control it acts in, controller)
    "TablePushCube-v1": ("ee", table_push),
    "TablePullCube-v1": ("ee", table_pull),
    "TableLiftCube-v1": ("ee", table_lift),
    "PushCube-v1": ("ee", push_cube),
    "PullCube-v1": ("ee", pull_cube),
    "PickCube-v1": ("ee", pick_cube),
    "StackCube-v1": ("ee", stack_cube),
    "LiftPegUpright-v1": ("ee_pose", lift_peg),
}


class ManiSkillExpert(Expert):
    """The scripted expert of one task, or of several told apart by their instruction.

    Args:
        env: the environment it is to act in.
        **settings: of ``Expert``; noise leaves the gripper alone by default.

    Raises:
        UserError: a task without expert, or an environment under another control mode.
    """

    hand = ((STATE, TCP.start),)

    def __init__(self, env: VlaVectorEnv, **settings: Any) -> None:
        spec = env.env_spec
        super().__init__(spec, **({"noisy_dims": spec.action_dim - 1} | settings))
        self.commands: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
        for id in dict.fromkeys(env.task_ids()):
            if id not in EXPERTS:
                raise UserError(f"no scripted expert for {id}: there is one for {', '.join(EXPERTS)}")
            control, command = EXPERTS[id]
            if spec.action_dim != len(CONTROLS[control][0]) + 1:
                raise UserError(f"the expert of {id} acts under env.control={control}: set it")
            self.commands[INSTRUCTIONS[id]] = command

    def command(self, observation: Observation) -> Tensor:
        """[B, A]; rows are grouped by instruction."""
        velocity, extra = observation[ENV_STATE].tensor_split([QVEL], dim=-1)
        state = torch.cat([observation[STATE], velocity], dim=-1)
        tasks = observation["task"]
        if len(self.commands) == 1:
            return next(iter(self.commands.values()))(state, extra)
        action = torch.zeros(len(state), self.spec.action_dim)
        for instruction, command in self.commands.items():
            rows = torch.tensor([t == instruction for t in tasks])
            if rows.any():
                action[rows] = command(state[rows], extra[rows])
        return action
