"""Serves a gripper's action for a simulated arm, as ros2_control's gripper controllers do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from real.contract import Gripper
from real.gripper import action_type
from real.ros2 import Link

NEAR = 0.01
"""Share of the stroke within which the fingers are there."""

STALL = 0.3
"""Seconds without motion after which they hold something."""


class GripperServer:
    """Takes goals; ``update`` it at each tick. A new goal pre-empts the present one.

    Args:
        gripper: of the contract.
        link: the arm's node.
        move: called with each goal's position (joint units), in the executor's thread.
    """

    def __init__(self, gripper: Gripper, link: Link, move: Callable[[float], None]) -> None:
        from rclpy.action import ActionServer, CancelResponse, GoalResponse

        self.gripper, self.move, self.kind = gripper, move, action_type(gripper.kind)
        self.received: list[float] = []
        """Positions of all goals."""
        self._lock = threading.Lock()
        self._goal: Any = None
        self._still_since, self._seen = 0.0, float("nan")
        self.server = ActionServer(
            link.node,
            self.kind,
            gripper.topic,
            execute_callback=self._end,
            goal_callback=lambda goal: (
                GoalResponse.ACCEPT if self._target(goal) is not None else GoalResponse.REJECT
            ),
            handle_accepted_callback=self._begin,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
        )

    def _target(self, goal: Any) -> float | None:
        if self.gripper.kind == "action":
            return float(goal.command.position)
        places = dict(zip(goal.command.name, goal.command.position, strict=False))
        return places.get(self.gripper.joint)

    def _begin(self, handle: Any) -> None:
        with self._lock:
            before, self._goal = self._goal, handle
            self._seen = float("nan")
        self._outcome = (0.0, False, False)
        if before is not None:
            before.execute(lambda h: self._end(h, preempted=True))
        target = self._target(handle.request)
        self.received.append(target)  # type: ignore[arg-type]
        self.move(target)  # type: ignore[arg-type]

    def update(self, time: float, finger: float) -> None:
        """End the present goal when the fingers (joint units) are there, have stalled, or it is cancelled."""
        with self._lock:
            handle = self._goal
            if handle is None:
                return
            span = abs(self.gripper.open - self.gripper.shut)
            if not abs(finger - self._seen) < 1e-3 * span:
                self._seen, self._still_since = finger, time
            there = abs(finger - (self._target(handle.request) or 0.0)) < NEAR * span
            stalled = time - self._still_since > STALL
            if not (there or stalled or handle.is_cancel_requested):
                return
            self._goal, self._outcome = None, (finger, stalled and not there, there)
        handle.execute()

    def _end(self, handle: Any, preempted: bool = False) -> Any:
        result, (finger, stalled, there) = self.kind.Result(), self._outcome
        if self.gripper.kind == "action":
            result.position = finger
        else:
            result.state.name, result.state.position = [self.gripper.joint], [finger]
        result.stalled, result.reached_goal = stalled, there
        if handle.is_cancel_requested:
            handle.canceled()
        elif preempted:
            handle.abort()
        else:
            handle.succeed()
        return result
