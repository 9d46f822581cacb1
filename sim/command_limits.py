"""What a controller manager does with commands that ask too much (ros2_control: ``enforce_command_limits``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Motion = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Positions, velocities, accelerations [n]."""

NEAR = 1e-4
"""rad: a reference this near to where a step of its own velocity leads is followed as it is."""


class CommandLimits:
    """A reference at most as fast, and as quick to become so, as the limits allow; behind one that is faster.

    A command stream inside its limits passes unchanged. One with gaps (lost messages) asks for a jump afterwards: it is
    caught up with at the limits. Call it with rising times, step by step.

    Args:
        velocity: [n] rad/s.
        acceleration: [n] rad/s^2.
    """

    def __init__(self, velocity: Sequence[float], acceleration: Sequence[float]) -> None:
        self.velocity, self.acceleration = np.array(velocity), np.array(acceleration)
        self.time: float | None = None

    def rest(self, position: np.ndarray, time: float) -> None:
        """Begin at rest."""
        still = np.zeros(len(position))
        self.time, self.motion = time, (np.array(position, np.float64), still, still)

    def follow(self, reference: Callable[[float], Motion], time: float) -> Motion:
        """The motion at ``time``, later than before.

        Args:
            reference: what is asked for at a time.
            time: seconds.
        """
        asked = reference(time)
        if self.time is None:
            self.rest(asked[0], time)
        assert self.time is not None
        position, velocity, _ = self.motion
        step = time - self.time
        if step <= 0:  # a clock that was put back
            self.time = time
            return self.motion
        gap = asked[0] - (position + asked[1] * step)
        quickest = self.acceleration * step
        fine = (
            (np.abs(gap) < NEAR)
            & (np.abs(asked[1]) <= self.velocity)
            & (np.abs(asked[1] - velocity) <= quickest * 1.01)
        )
        # Fast enough to be there after this step, slow enough to stop being faster once there.
        more = np.minimum(np.abs(gap) / step, np.sqrt(2 * self.acceleration * np.abs(gap)))
        speed = np.clip(asked[1] + np.sign(gap) * more, -self.velocity, self.velocity)
        speed = np.clip(speed, velocity - quickest, velocity + quickest)
        caught = position + speed * step, speed, (speed - velocity) / step
        self.time = time
        self.motion = (
            np.where(fine, asked[0], caught[0]),
            np.where(fine, asked[1], caught[1]),
            np.where(fine, asked[2], caught[2]),
        )
        return self.motion
