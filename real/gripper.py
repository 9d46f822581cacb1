"""The gripper's end of the safety node: position commands on a topic, or goals of an action.

An action's goal runs until the fingers are there or stall, so goals are few: a new one goes out when the target has
changed by more than ``tolerance``, and one that is under way is cancelled first. Servers differ in what they do with
two goals at once (ros2_control's pre-empts, Franka's carries both out), with none in flight they agree.
"""

from __future__ import annotations

import importlib
import threading
import time
from typing import Any, Protocol

from real.contract import Gripper
from real.ros2 import Link
from vla_rl.errors import UserError

TYPES = {"action": "GripperCommand", "parallel_action": "ParallelGripperCommand"}
"""Of ``control_msgs.action``, for each ``gripper.kind``."""


ANSWER = 2.0
"""Seconds that a server may take to accept or refuse a goal; then it is sent again."""


class GripperPort(Protocol):
    """Where the fingers' targets go."""

    def send(self, position: float) -> None:
        """The target now (joint units); called at every decision, from one thread."""
        ...


def gripper_port(gripper: Gripper | None, link: Link, timeout: float = 5.0) -> GripperPort | None:
    """The port of a contract's gripper; None for an arm without.

    Raises:
        UserError: the action's type is not installed, or nobody serves it within ``timeout`` seconds.
    """
    if gripper is None:
        return None
    return TopicPort(gripper, link) if gripper.kind == "topic" else ActionPort(gripper, link, timeout)


def action_type(kind: str) -> Any:
    """The class of ``control_msgs.action`` for a ``gripper.kind``.

    Raises:
        UserError: control_msgs is not installed.
    """
    try:
        return getattr(importlib.import_module("control_msgs.action"), TYPES[kind])
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"gripper.kind={kind} needs control_msgs ({error}): source a ROS installation that has it, or build it "
            "into .venv with ros_ws/control_msgs/build"
        ) from error


class TopicPort:
    """``std_msgs/Float64MultiArray``, at every decision."""

    def __init__(self, gripper: Gripper, link: Link) -> None:
        from std_msgs.msg import Float64MultiArray

        self._kind = Float64MultiArray
        self._publisher = link.publisher(gripper.topic, Float64MultiArray)

    def send(self, position: float) -> None:
        """Publish it."""
        self._publisher.publish(self._kind(data=[position]))


class ActionPort:
    """``control_msgs/action/GripperCommand`` or ``ParallelGripperCommand``: one goal at a time.

    Raises:
        UserError: see ``gripper_port``.
    """

    def __init__(self, gripper: Gripper, link: Link, timeout: float = 5.0) -> None:
        from rclpy.action import ActionClient

        self.gripper, self.link = gripper, link
        self.kind = action_type(gripper.kind)
        self.client: Any = ActionClient(link.node, self.kind, gripper.topic)
        if not self.client.wait_for_server(timeout_sec=timeout):
            raise UserError(
                f"nobody serves the action {gripper.topic}: is the gripper's driver running? (gripper.topic)"
            )
        self.goals = 0
        """Goals sent so far."""
        self._lock = threading.Lock()
        self._aim: float | None = None  # of the newest goal
        self._next: float | None = None  # what came while it was under way
        self._under_way = 0  # number of that goal; 0 = none
        self._handle: Any = None
        self._asked = 0.0

    def send(self, position: float) -> None:
        """A goal, if it is news; a goal under way is cancelled first."""
        with self._lock:
            gone = not self.client.server_is_ready()
            unheard = self._under_way and self._handle is None and time.monotonic() - self._asked > ANSWER
            if gone or unheard:  # no answer will come to what is under way
                self._under_way, self._aim, self._next, self._handle = 0, None, None, None
            if gone or not self._news(position):
                return
            if self._under_way:
                self._next = position
                self._cancel()
            else:
                self._submit(position)

    def _news(self, position: float) -> bool:
        latest = self._next if self._next is not None else self._aim
        if latest is None:
            return True
        span = abs(self.gripper.open - self.gripper.shut)
        at_end = position in (self.gripper.open, self.gripper.shut)
        return position != latest and (at_end or abs(position - latest) > self.gripper.tolerance * span)

    def _submit(self, position: float) -> None:
        goal, effort = self.kind.Goal(), self.gripper.effort
        if self.gripper.kind == "action":
            goal.command.position, goal.command.max_effort = position, effort
        else:
            goal.command.name, goal.command.position = [self.gripper.joint], [position]
            goal.command.effort = [effort] if effort else []
        self.goals += 1
        self._aim, self._next, self._under_way, self._handle = position, None, self.goals, None
        number, self._asked = self.goals, time.monotonic()
        self.client.send_goal_async(goal).add_done_callback(lambda f: self._answered(number, f))

    def _cancel(self) -> None:
        if self._handle is not None:  # else as soon as it is accepted
            self._handle.cancel_goal_async()

    def _answered(self, number: int, future: Any) -> None:
        handle = future.result()
        with self._lock:
            if number != self._under_way:
                return
            if not handle.accepted:
                self.link.node.get_logger().warning(f"{self.gripper.topic} refuses the goal {self._aim}")
                self._over()
                return
            self._handle = handle
            if self._next is not None:
                self._cancel()
        handle.get_result_async().add_done_callback(lambda _: self._finished(number))

    def _finished(self, number: int) -> None:
        with self._lock:
            if number == self._under_way:
                self._over()

    def _over(self) -> None:
        self._under_way, self._handle = 0, None
        if self._next is not None:
            self._submit(self._next)
