"""Plays a joint trajectory as ros2_control's joint trajectory controller does: splines through its points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Motion = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Positions, velocities, accelerations [n]."""


class TrajectoryPlayer:
    """The reference of a position-controlled arm: at rest, or along the newest trajectory, and at rest after it.

    A new trajectory replaces the old one at once: points in the past are dropped, and the reference goes from where
    it is now to the first point that is left. Between points: quintic splines where velocities and accelerations are
    given, cubic with velocities alone, straight lines without.

    Args:
        position: [n] where it rests at first.
    """

    def __init__(self, position: np.ndarray) -> None:
        self.rest(position)

    def rest(self, position: np.ndarray) -> None:
        """Forget the trajectory and stay here."""
        position = np.array(position, np.float64)
        still = np.zeros_like(position)
        self.times = np.array([0.0])
        self.knots: list[Motion] = [(position, still, still)]
        self.order = 5

    def follow(
        self,
        times: Sequence[float],
        positions: np.ndarray,
        velocities: np.ndarray | None,
        accelerations: np.ndarray | None,
        now: float,
    ) -> None:
        """Take over a trajectory.

        Args:
            times: [k] when each point is due, on the clock of ``now``, rising.
            positions: [k, n].
            velocities: [k, n] or None.
            accelerations: [k, n] or None.
            now: time.
        """
        left = [i for i, time in enumerate(times) if time > now]
        if not left:
            left, times = [len(times) - 1], [*times[:-1], now + 1e-3]
        still = np.zeros(positions.shape[1])
        here = self.at(now)
        self.order = 1 if velocities is None else 3 if accelerations is None else 5
        self.times = np.array([now, *(times[i] for i in left)])
        self.knots = [here] + [
            (
                positions[i],
                still if velocities is None else velocities[i],
                still if accelerations is None else accelerations[i],
            )
            for i in left
        ]

    def at(self, time: float) -> Motion:
        """The reference at ``time``; after the last point it rests there."""
        last = len(self.times) - 1
        i = int(np.searchsorted(self.times, time, side="right")) - 1
        if i >= last or last == 0:
            position = self.knots[-1][0]
            still = np.zeros_like(position)
            return position, still, still
        if i < 0:
            return self.knots[0]
        return spline(
            self.knots[i],
            self.knots[i + 1],
            self.times[i + 1] - self.times[i],
            time - self.times[i],
            self.order,
        )


def spline(start: Motion, end: Motion, duration: float, time: float, order: int) -> Motion:
    """Position, velocity and acceleration at ``time`` of the polynomial of ``order`` 1, 3 or 5 from start to end."""
    (p0, v0, a0), (p1, v1, a1) = start, end
    T, gap = duration, p1 - p0
    if order == 1:
        return p0 + gap * (time / T), gap / T, np.zeros_like(p0)
    if order == 3:
        c = [p0, v0, (3 * gap - (2 * v0 + v1) * T) / T**2, (-2 * gap + (v0 + v1) * T) / T**3]
    else:
        c = [
            p0,
            v0,
            a0 / 2,
            (20 * gap - (8 * v1 + 12 * v0) * T - (3 * a0 - a1) * T**2) / (2 * T**3),
            (-30 * gap + (14 * v1 + 16 * v0) * T + (3 * a0 - 2 * a1) * T**2) / (2 * T**4),
            (12 * gap - 6 * (v1 + v0) * T - (a0 - a1) * T**2) / (2 * T**5),
        ]
    position = sum(ck * time**k for k, ck in enumerate(c))
    velocity = sum(k * ck * time ** (k - 1) for k, ck in enumerate(c) if k)
    acceleration = sum(k * (k - 1) * ck * time ** (k - 2) for k, ck in enumerate(c) if k > 1)
    return position, velocity, acceleration  # type: ignore[return-value]
