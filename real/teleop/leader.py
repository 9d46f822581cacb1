"""A leader arm (sensor_msgs/JointState): hold the dead-man button and the robot does what the leader does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from sensor_msgs.msg import JointState
from tensordict import TensorDict
from torch import Tensor

from real.kinematics import ArmModel
from real.robot_env import RobotEnv
from real.safety_node import read_joints
from real.teleop.buttons import Buttons
from real.teleop.joy import gripper_now
from vla_rl.errors import UserError
from vla_rl.keys import STATE
from vla_rl.policies.base import Observation

TURNED = 0.1
"""Share of its range by which the leader's gripper must move before the robot's follows it."""


class Leader:
    """A teleoperator (see ``vla_rl.policies.intervened.Teleoperator``) for one robot.

    Motion is relative to where leader and robot were when the button went down, so that taking over does not jerk,
    whatever the leader's posture; let go, put the leader back and go on. A leader or a button that falls silent keeps the
    arm still, and the policy away, until it is heard again with the button released.

    Under ``control.mode: joint`` the robot's joints follow the leader's; else its TCP follows the leader's TCP, of the
    same URDF unless ``urdf`` names another.

    Args:
        env: the robot, whose node listens.
        topic: of the leader's joint states.
        joints: the leader's names of the arm's joints, in the contract's order; None = the same names.
        gripper: its name of the gripper's joint; None = the buttons ``open`` and ``shut`` only.
        gripper_range: its positions when shut and when open.
        urdf: of the leader, for Cartesian control; None = the robot's.
        scale: robot's motion per leader's.
        buttons: topic of the sensor_msgs/Joy device that engages (a foot pedal will do).
        deadman: index of the button that must be held.
        max_age: seconds after which a message is stale.
        rewind_seconds: how far the ``rewind`` button goes back.
        **indices: ``open``, ``shut``, ``success``, ``failure``, ``discard``, ``rewind``, ``stop``: buttons as ``Joy`` has
            them.

    Raises:
        UserError: a leader with other joints than needed, silent, or a button used twice.
    """

    state_keys = (STATE,)

    def __init__(
        self,
        env: RobotEnv,
        topic: str = "/leader/joint_states",
        *,
        joints: Sequence[str] | None = None,
        gripper: str | None = None,
        gripper_range: Sequence[float] = (0.0, 1.0),
        urdf: str | None = None,
        scale: float = 1.0,
        buttons: str = "/joy",
        deadman: int = 0,
        max_age: float = 0.3,
        rewind_seconds: float = 2.0,
        **indices: int | None,
    ) -> None:
        contract = env.contract
        known = ("open", "shut", "success", "failure", "discard", "rewind", "stop")
        for name in indices:
            if name not in known:
                raise UserError(f"teleop.{name}: there is no such button; there are {', '.join(known)}")
        if gripper_range[0] == gripper_range[1]:
            raise UserError("teleop.gripper_range: shut and open are the same position")
        self.env, self.gripper, self.range = env, gripper, tuple(gripper_range)
        self.joints = list(joints or contract.joints)
        if contract.control.mode == "joint" and len(self.joints) != len(contract.joints):
            raise UserError(
                f"teleop.joints names {len(self.joints)} joints, {contract.name} has {len(contract.joints)}"
            )
        self.model = None
        if contract.control.mode != "joint":
            collision = replace(contract.collision, capsules=[])
            own = replace(contract, collision=collision)
            if urdf is not None:
                own = replace(own, urdf=urdf, joints=self.joints)
            self.model = ArmModel(own)
        self.scale, self.max_age = scale, max_age
        self.buttons = Buttons(env, buttons, {"deadman": deadman} | indices, max_age, rewind_seconds)
        self.heard = env.link.listen(topic, JointState)
        env.link.require([self.heard], 5.0)
        self._read(gripper=True)  # names what it lacks, before anybody relies on it
        self.grip = 1.0

    def _read(self, *, gripper: bool = False) -> np.ndarray:
        assert self.heard.newest is not None
        names = [*self.joints, *([self.gripper] if gripper and self.gripper else [])]
        return read_joints(self.heard.newest.message, names)

    def initial_state(self, batch_size: int) -> TensorDict:
        """The device has no state of its own."""
        if batch_size != 1:
            raise UserError(f"a leader arm steers one robot, not {batch_size}")
        return TensorDict({}, batch_size=[1])

    def command(self, observation: Observation, state: TensorDict) -> tuple[Tensor, Tensor, TensorDict]:
        """See ``Teleoperator``."""
        holding, taken, begun = self.buttons.engaged()
        holding = holding and 0 <= self.heard.age() <= self.max_age
        if begun and holding:
            self.grip = gripper_now(self.env, observation)
            self._leader, self._robot = self._read(), self.env.commander.target.copy()
            self._turned, self._grip_then = False, self._squeezed()
        elif begun:
            self.buttons.release()  # without the leader nothing begins
            taken = False
        action = np.zeros(self.env.env_spec.action_dim, np.float32)
        if holding:
            moves = self._moves()
            action[: len(moves)] = np.clip(moves, -1.0, 1.0)
            self._follow_gripper()
        if self.env.contract.gripper is not None:
            action[-1] = self.grip
        return torch.from_numpy(action)[None], torch.tensor([taken]), state

    def _moves(self) -> np.ndarray:
        """What is left of the way to where the leader has gone, in units of one action."""
        control, commander = self.env.contract.control, self.env.commander
        leader = self._read()
        if self.model is None:
            wanted = self._robot + self.scale * (leader - self._leader)
            return (wanted - commander.target) / control.rotation
        there, turned = self.model.pose(leader)
        began, before = self.model.pose(self._leader)
        place, posture = self.env.model.pose(self._robot)
        now, pointing = self.env.model.pose(commander.target)
        move = (place + self.scale * (there - began) - now) / control.translation
        if control.mode == "ee":
            return move
        import pinocchio as pin  # pyright: ignore[reportMissingImports]

        wanted = (turned @ before.T) @ posture
        return np.concatenate([move, pin.log3(wanted @ pointing.T) / control.rotation])

    def _squeezed(self) -> float:
        """0 shut ... 1 open; nan without a gripper."""
        if self.gripper is None:
            return float("nan")
        shut, wide = self.range
        return float((self._read(gripper=True)[-1] - shut) / (wide - shut))

    def _follow_gripper(self) -> None:
        pressed = self.buttons.pressed()
        if pressed & {"open", "shut"}:
            self.grip = 1.0 if "open" in pressed else -1.0
            return
        now = self._squeezed()
        self._turned = self._turned or abs(now - self._grip_then) > TURNED
        if self._turned:
            self.grip = float(np.clip(2 * now - 1, -1.0, 1.0))
