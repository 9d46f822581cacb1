"""What a policy sees and commands of a contract's arm: the same code on the robot and on its simulated twin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from real.contract import RobotContract
from real.kinematics import ArmModel
from vla_rl.differential_ik import DifferentialIK
from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.keys import image_key

INSET = 0.003
"""metres inside the workspace that Cartesian targets stay."""

AXES = {"ee": ("dx", "dy", "dz"), "ee_pose": ("dx", "dy", "dz", "rx", "ry", "rz")}


def state_names(contract: RobotContract) -> tuple[str, ...]:
    """Names of the S numbers of ``observation.state``."""
    gripper = (contract.gripper.joint,) if contract.gripper else ()
    return (*contract.joints, "tcp_x", "tcp_y", "tcp_z", *gripper)


def state_vector(model: ArmModel, joints: np.ndarray, gripper: float | None) -> np.ndarray:
    """Proprioception [S] float32: joints (rad), TCP position (m, base frame), gripper position if there is one."""
    parts = [joints, model.pose(joints)[0], [] if gripper is None else [gripper]]
    return np.concatenate(parts).astype(np.float32)


def action_names(contract: RobotContract) -> tuple[str, ...]:
    """Names of the A action numbers."""
    moves = AXES.get(contract.control.mode) or tuple(contract.joints)
    return (*moves, "gripper") if contract.gripper else moves


def chosen_cameras(contract: RobotContract, cameras: Sequence[str] | None) -> list[str]:
    """Names of the contract's cameras to use; None = all.

    Raises:
        UserError: one that it does not have.
    """
    names = list(contract.cameras) if cameras is None else list(cameras)
    for name in names:
        if name not in contract.cameras:
            raise UserError(
                f"{contract.name} has no camera {name}: it has {', '.join(contract.cameras) or 'none'}"
            )
    return names


def robot_spec(
    contract: RobotContract, cameras: Sequence[str] | None, task: str | None, max_episode_steps: int
) -> EnvSpec:
    """The environment's specification, without a robot.

    Raises:
        UserError: no task, or a camera that the contract does not have.
    """
    if task is None and not contract.tasks:
        raise UserError(f"{contract.name} has no tasks: name one in the contract, or task=")
    actions = action_names(contract)
    sizes = {n: (contract.cameras[n].height, contract.cameras[n].width) for n in contract.cameras}
    return EnvSpec(
        id=contract.name,
        state_dim=len(state_names(contract)),
        env_state_dim=3 * len(contract.objects),
        action_low=(-1.0,) * len(actions),
        action_high=(1.0,) * len(actions),
        cameras={image_key(n): sizes[n] for n in chosen_cameras(contract, cameras)},
        tasks=(task or contract.tasks[0],),
        max_episode_steps=max_episode_steps,
        rate_hz=contract.control.rate_hz,
        state_names=state_names(contract),
        action_names=actions,
    )


class Commander:
    """Turns actions [A] in -1 ... 1 into joint targets.

    ``ee``: TCP translation (1 = ``control.translation`` metres); ``ee_pose``: and a rotation vector (1 =
    ``control.rotation`` rad); ``joint``: joint steps (1 = ``control.rotation`` rad). The last number, if there is a
    gripper: 1 = open, -1 = shut. Steps add up on the target, not on the lagging arm.

    Args:
        contract: the robot.
        model: its kinematics.
    """

    def __init__(self, contract: RobotContract, model: ArmModel) -> None:
        self.contract, self.arm = contract, model
        lower, upper = np.array(contract.limits.lower), np.array(contract.limits.upper)
        self.lower, self.upper = lower, upper
        count = len(contract.joints)
        tool = contract.tool
        # Aimed a little inside: a target on the border would be refused now and then, with all of its motion.
        box = np.array(tool.low) + INSET, np.array(tool.high) - INSET
        bounds = {"lower": lower[model.order], "upper": upper[model.order], "box": box}
        self.ik = DifferentialIK(model.model, model.tool, count, **bounds)
        self.action_dim = len(action_names(contract))

    def reset(self, joints: np.ndarray) -> None:
        """Begin from joints [n]."""
        self.target = np.array(joints, np.float64)
        self.ik.reset(self.target[self.arm.order])

    def command(self, action: np.ndarray, joints: np.ndarray) -> tuple[np.ndarray, float | None]:
        """Joint targets [n] and the gripper's, for an action [A] taken at joints [n]."""
        control, gripper = self.contract.control, self.contract.gripper
        action = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        move = action[:-1] if gripper else action
        if control.mode == "joint":
            self.target = np.clip(self.target + control.rotation * move, self.lower, self.upper)
        else:
            scale = [control.translation] * 3 + [control.rotation] * (len(move) - 3)
            now = np.asarray(joints, np.float64)[self.arm.order]
            self.target = self.ik.command(now, move * scale)[self.arm.inverse]
        if gripper is None:
            return self.target, None
        return self.target, gripper.shut + (action[-1] + 1) / 2 * (gripper.open - gripper.shut)
