"""What a policy sees and commands of a contract's arm: the same code on the robot and on its simulated twin."""

from __future__ import annotations

import numpy as np

from real.contract import RobotContract
from real.kinematics import ArmModel
from vla_rl.differential_ik import DifferentialIK

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
