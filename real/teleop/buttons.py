"""Buttons of a sensor_msgs/Joy device (gamepad, SpaceMouse, foot pedal): held, pressed once, fallen silent."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from real.robot_env import RobotEnv
from vla_rl.errors import UserError

OUTCOMES = ("success", "failure", "discard", "rewind")


def checked_rewind(seconds: float) -> float:
    """``rewind_seconds`` of a device.

    Raises:
        UserError: not positive.
    """
    if not seconds > 0:
        raise UserError(f"teleop.rewind_seconds={seconds} must be positive")
    return float(seconds)


class Buttons:
    """Follows a device and tells the robot how an episode went.

    Args:
        env: the robot, whose node listens and whose ``outcome`` this becomes.
        topic: of the device.
        indices: button's name -> its index, None = there is none. ``deadman`` engages; ``success``, ``failure`` and
            ``discard`` end the episode, ``rewind`` takes the arm back along its path; ``stop`` latches the safety node's
            stop; others are only ``pressed``.
        max_age: seconds after which a message is stale (joy_node repeats at 20 Hz: ``autorepeat_rate``).
        rewind_seconds: how far ``rewind`` goes back.

    Raises:
        UserError: a button used twice.
    """

    def __init__(
        self,
        env: RobotEnv,
        topic: str,
        indices: Mapping[str, int | None],
        max_age: float = 0.3,
        rewind_seconds: float = 2.0,
    ) -> None:
        from sensor_msgs.msg import Joy

        env.rewind_seconds = checked_rewind(rewind_seconds)

        used: dict[int, str] = {}
        for name, index in indices.items():
            if index is not None and index in used:
                raise UserError(f"teleop.{name} and teleop.{used[index]} are both button {index}")
            if index is not None:
                used[index] = name
        self.env, self.max_age = env, max_age
        self.indices = {index: name for index, name in used.items()}
        self._lock = threading.Lock()
        self._outcome, self._held = "", False
        self._before: set[str] = set()
        self.heard = env.link.listen(topic, Joy, self._hear)
        env.outcome = self.outcome

    def _hear(self, message: Any) -> None:
        """Edges of buttons, in the executor's thread: a short press is never missed."""
        pressed = {n for i, n in self.indices.items() if i < len(message.buttons) and message.buttons[i]}
        with self._lock:
            fresh, self._before = pressed - self._before, pressed
            for name in OUTCOMES:
                if name in fresh:
                    self._outcome = name
        if "stop" in fresh:
            self.env.stop()

    def outcome(self) -> str:
        """The newest of ``OUTCOMES`` whose button was pressed since the last call, else an empty string."""
        with self._lock:
            outcome, self._outcome = self._outcome, ""
            return outcome

    def pressed(self) -> set[str]:
        """Names of the buttons that are down."""
        with self._lock:
            return set(self._before)

    @property
    def fresh(self) -> bool:
        """Whether the device was heard lately."""
        return self.heard.newest is not None and 0 <= self.heard.age() <= self.max_age

    def engaged(self) -> tuple[bool, bool, bool]:
        """(steering now, taken from the policy, begun just now).

        A device that falls silent while its dead-man button is held, be it between two episodes, steers no more but keeps
        the policy away, until it is heard again with the button released.
        """
        pressed, fresh = "deadman" in self.pressed(), self.fresh
        holding, silent = pressed and fresh, pressed and not fresh
        begun = holding and not self._held
        self._held = holding or (silent and self._held)
        return holding, holding or silent, begun

    def release(self) -> None:
        """What ``engaged`` has begun did not come about."""
        self._held = False
