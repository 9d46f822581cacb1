"""What a console reads of a robot and asks of its safety node, beside whoever drives it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from real.contract import RobotContract
from real.ros2 import Latest, Link, picture_type
from real.safety_node import RESET, STATE, STOP, STOP_BUTTON, describe

SILENT = 1.0
"""Seconds after which the safety node, which speaks ten times a second, counts as gone."""


@dataclass
class Streams:
    """The robot's topics as a person looks at them; never a target.

    Attributes:
        contract: the robot.
        link: node that listens.
        stop: presses the safety node's stop button.
        joints: joint states.
        safety: the safety node's state.
        pictures: of all cameras of the contract, whether a policy uses them or not.
        objects: poses of tracked objects.
    """

    contract: RobotContract
    link: Link
    stop: Callable[[], None]
    joints: Latest
    safety: Latest
    pictures: dict[str, Latest]
    objects: dict[str, Latest] = field(default_factory=dict)

    def safety_now(self) -> tuple[str, str]:
        """(mode, reason); an empty mode: the safety node is not there."""
        newest = self.safety.newest
        if newest is None or self.link.now() - newest.arrival > SILENT:
            return "", "its last word is over a second old" if newest else ""
        return describe(self.safety)

    def reported(self, key: str) -> float:
        """A number of the safety node's state; nan if there is none."""
        newest = self.safety.newest
        values = newest.message.values if newest is not None else ()
        try:
            return next((float(v.value) for v in values if v.key == key), np.nan)
        except ValueError:
            return np.nan

    def ages(self) -> list[tuple[str, float, float]]:
        """Name, age and greatest age allowed of each stream, in seconds."""
        contract, now, heard = self.contract, self.link.now(), self.safety.newest
        rows = [
            ("safety node", now - heard.arrival if heard else float("inf"), SILENT),
            ("joint states", self.joints.age(), contract.joint_states.max_age),
        ]
        rows += [(f"camera {n}", s.age(), contract.cameras[n].max_age) for n, s in self.pictures.items()]
        return rows + [(f"object {n}", s.age(), contract.objects[n].max_age) for n, s in self.objects.items()]

    def positions(self) -> dict[str, float]:
        """Joint name -> position, as heard last."""
        newest = self.joints.newest
        return dict(zip(newest.message.name, newest.message.position, strict=False)) if newest else {}

    def stop_by_service(self) -> str:
        """Ask the stop service. Raises: UserError: nobody answers."""
        return self.link.pull(STOP, 1.0)

    def reset(self) -> str:
        """End a latched stop; returns the safety node's answer. Raises: UserError: it refuses, and why."""
        return self.link.pull(RESET, 3.0)


def watch(contract: RobotContract, link: Link) -> Streams:
    """The streams of a robot that another process drives."""
    from diagnostic_msgs.msg import DiagnosticStatus
    from geometry_msgs.msg import PoseStamped
    from sensor_msgs.msg import JointState
    from std_msgs.msg import Bool

    button = link.publisher(STOP_BUTTON, Bool)
    return Streams(
        contract,
        link,
        lambda: button.publish(Bool(data=True)),
        link.listen(contract.joint_states.topic, JointState),
        link.listen(STATE, DiagnosticStatus),
        _pictures(contract, link, list(contract.cameras)),
        {n: link.listen(s.topic, PoseStamped) for n, s in contract.objects.items()},
    )


def watch_env(env: Any) -> Streams:
    """The streams of a ``RobotEnv`` of this process, and the cameras that its policy does not use."""
    contract, link = env.contract, env.link
    rest = _pictures(contract, link, [n for n in contract.cameras if n not in env.pictures])
    return Streams(contract, link, env.stop, env.joints, env.safety, {**env.pictures, **rest}, env.objects)


def _pictures(contract: RobotContract, link: Link, names: list[str]) -> dict[str, Latest]:
    cameras = contract.cameras
    return {n: link.listen(cameras[n].topic, picture_type(cameras[n])) for n in names}
