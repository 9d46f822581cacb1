"""Between everything and the arm: whatever is asked for, what is commanded stays inside the contract's limits.

This is **not a certified safety function**. It bounds what this software commands; it does not replace the robot's
own safety controller, an emergency stop or a risk assessment.

Every tick keeps one invariant: the braking trajectory from the commanded state (ruckig, jerk-limited, to
standstill) has been checked against every limit. A step towards the target is taken only if one can still brake
safely after it; otherwise the arm takes the next step of the braking trajectory checked before. So whatever comes,
and whenever it stops coming, standstill inside the limits is always reachable and already computed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from real.contract import RobotContract
from real.kinematics import ArmModel
from vla_rl.errors import UserError

EPS = 1e-9

AHEAD = 2
"""Ticks between a command and its moment: what the network and a late process may use up without a jolt."""

SHARE = 0.9
"""Of the TCP's speed limit, aimed at; the rest is for the step that is being checked."""


MARGIN = 0.98
"""Of the joints' speed limits, commanded at most: an arm that lags a little and catches up stays inside them too."""


class Mode(Enum):
    """What the filter is doing."""

    RUN = "run"
    HOLD = "hold"
    """Braking or standing, because something is stale; goes on by itself when it is fresh again."""
    STOPPED = "stopped"
    """Latched: braking or standing until ``reset``."""


@dataclass
class Setpoint:
    """One tick's command.

    Attributes:
        position: [n] rad.
        velocity: [n] rad/s.
        acceleration: [n] rad/s^2.
        brake: how to come to rest from here (``seconds``, ``at``).
        mode: what the filter is doing.
        reason: why it is not running, or why it brakes although it runs; empty otherwise.
    """

    position: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    brake: Brake
    mode: Mode
    reason: str = ""


class Brake:
    """A trajectory to standstill from a state, and how far along it we are."""

    def __init__(self, trajectory: Any, offset: float = 0.0) -> None:
        self.trajectory, self.offset = trajectory, offset

    @property
    def seconds(self) -> float:
        """Time left until standstill."""
        return max(0.0, self.trajectory.duration - self.offset)

    def at(self, time: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Position, velocity, acceleration [n] after ``time`` seconds; at rest at the end."""
        position, velocity, acceleration = self.trajectory.at_time(self.offset + time)
        if self.offset + time >= self.trajectory.duration:
            velocity, acceleration = np.zeros(len(position)), np.zeros(len(position))
        return np.array(position), np.array(velocity), np.array(acceleration)

    def way(self, dt: float) -> tuple[np.ndarray, np.ndarray]:
        """Positions and velocities [k, n] every ``dt`` seconds from now until standstill, both ends included."""
        times = self.offset + dt * np.arange(int(np.ceil(self.seconds / dt)) + 1)
        states = np.array([self.trajectory.at_time(time)[:2] for time in times])
        states[times >= self.trajectory.duration, 1] = 0.0
        return states[:, 0], states[:, 1]

    def later(self, time: float) -> Brake:
        """The rest of it from ``time`` on."""
        return Brake(self.trajectory, self.offset + time)


class SafetyFilter:
    """Turns targets at any rate into a command stream at ``contract.command.rate_hz`` that exceeds no limit.

    Not thread-safe: one loop owns it. Times are seconds of a monotonic clock.

    Args:
        contract: limits.
        model: kinematics of the same contract.
        delay: seconds between a tick and the moment the arm is to be where it commands.
    """

    def __init__(self, contract: RobotContract, model: ArmModel, delay: float = 0.0) -> None:
        import ruckig

        self.contract, self.model, self.delay = contract, model, delay
        self.dt = 1.0 / contract.command.rate_hz
        limits = contract.limits
        self.lower, self.upper = np.array(limits.lower), np.array(limits.upper)
        self.velocity_limit = np.array(limits.velocity)
        self.low, self.high = np.array(contract.tool.low), np.array(contract.tool.high)
        count = len(contract.joints)
        self._ruckig = ruckig
        self._towards = ruckig.Ruckig(count, self.dt)
        self._stopper = ruckig.Ruckig(count, self.dt)
        self._input, self._output = ruckig.InputParameter(count), ruckig.OutputParameter(count)
        self._braking = ruckig.InputParameter(count)
        for parameters in (self._input, self._braking):
            parameters.max_velocity = limits.velocity
            parameters.max_acceleration = limits.acceleration
            parameters.max_jerk = limits.jerk
        # From rest along the straight line: joint by joint, an arm at rest on an edge would leave on the wrong side.
        self._input.synchronization = ruckig.Synchronization.Phase
        self._braking.control_interface = ruckig.ControlInterface.Velocity
        self._braking.synchronization = ruckig.Synchronization.No
        self._braking.target_velocity = [0.0] * count
        self._braking.target_acceleration = [0.0] * count
        self._past: deque[np.ndarray] = deque(
            maxlen=2 + int(np.ceil((contract.joint_states.max_age + delay) / self.dt))
        )
        self.latched = "not started"
        self.lost = False
        """Whether it stopped because the arm is not where it was commanded to be: then nothing more is commanded."""
        self.rejected = 0
        """Targets refused so far."""

    def reset(self, measured: np.ndarray) -> None:
        """Begin (or begin again after a stop) at rest where the arm is; the only way out of a latched stop.

        Args:
            measured: [n] joints now.

        Raises:
            UserError: the arm is outside its limits, in self-collision or outside its workspace.
        """
        measured = np.asarray(measured, np.float64)
        for i, joint in enumerate(self.contract.joints):
            if not self.lower[i] <= measured[i] <= self.upper[i]:
                raise UserError(
                    f"{joint} is at {measured[i]:.3f}, outside {self.lower[i]} ... {self.upper[i]}: "
                    "move the arm inside by hand"
                )
        self.position = measured.copy()
        self.velocity, self.acceleration = np.zeros_like(measured), np.zeros_like(measured)
        self.brake = Brake(self._brake_from(self.position, self.velocity, self.acceleration))
        fault = self._fault(self.brake)
        if fault:
            raise UserError(f"the arm cannot start here: {fault}; move it by hand")
        self.target, self.target_time = measured.copy(), -np.inf
        self._past.clear()
        self._past.append(self.position)
        self.latched, self.lost = "", False

    @property
    def started(self) -> bool:
        """Whether ``reset`` has ever succeeded."""
        return bool(self._past)

    @property
    def at_rest(self) -> bool:
        """Whether it commands standstill."""
        return self.started and self.brake.seconds == 0

    def stop(self, reason: str) -> None:
        """Latch: brake to standstill and stay until ``reset``. The first reason is kept."""
        self.latched = self.latched or reason

    def hold(self) -> None:
        """Brake and hold until the next target."""
        self.target_time = -np.inf

    def aim(self, target: np.ndarray, now: float) -> str:
        """Ask for joint positions [n]; returns why they are refused, or an empty string.

        A target outside the joint limits is clipped to them; one that is not finite or further from the
        commanded position than ``limits.step`` is refused (the target before it stays).
        """
        target = np.asarray(target, np.float64)
        reason = ""
        if target.shape != self.position.shape:
            reason = f"target has shape {target.shape}, the arm {self.position.shape}"
        elif not np.isfinite(target).all():
            reason = "target is not finite"
        else:
            far = np.abs(target - self.position)
            if far.max() > self.contract.limits.step:
                joint = self.contract.joints[int(far.argmax())]
                reason = f"target of {joint} is {far.max():.2f} away, more than limits.step"
        if reason:
            self.rejected += 1
            return reason
        self.target, self.target_time = np.clip(target, self.lower, self.upper), now
        return ""

    def tick(self, now: float, measured: np.ndarray, age: float) -> Setpoint:
        """The next command.

        Args:
            now: time.
            measured: [n] joints as last reported.
            age: seconds since they were measured.
        """
        if not self.started:
            raise RuntimeError("SafetyFilter.reset(measured) comes before the first tick")
        mode, reason = self._mode(now, measured, age)
        if mode is Mode.RUN:
            reason = self._advance()
        else:
            self._continue_braking()
        self._past.append(self.position)
        return Setpoint(self.position, self.velocity, self.acceleration, self.brake, mode, reason)

    def skip(self, ticks: int) -> None:
        """Ticks that never came (a stalled process): the arm went on along the braking trajectory, and so do we."""
        for _ in range(min(ticks, int(np.ceil(self.brake.seconds / self.dt)) + 1)):
            self._continue_braking()
            self._past.append(self.position)

    def _mode(self, now: float, measured: np.ndarray, age: float) -> tuple[Mode, str]:
        fresh = np.isfinite(measured).all() and 0 <= age <= self.contract.joint_states.max_age
        if fresh and not self.latched:
            # Against where the arm was commanded to be when it was measured, not where it is to be now.
            then = self._past[-1 - min(round((age + self.delay) / self.dt), len(self._past) - 1)]
            lag = np.abs(measured - then)
            if lag.max() > self.contract.limits.tracking:
                joint = self.contract.joints[int(lag.argmax())]
                self.lost = True
                self.stop(
                    f"{joint} is {lag.max():.2f} rad from its command: blocked, or its controller is gone"
                )
        if self.latched:
            return Mode.STOPPED, self.latched
        if not fresh:
            finite = np.isfinite(measured).all()
            return (
                Mode.HOLD,
                f"joint states are {1e3 * age:.0f} ms old" if finite else "joint states are not finite",
            )
        waited = now - self.target_time
        if not 0 <= waited <= self.contract.command.timeout:
            return Mode.HOLD, f"no target for {1e3 * waited:.0f} ms" if np.isfinite(
                waited
            ) else "no target yet"
        return Mode.RUN, ""

    def _advance(self) -> str:
        """One step towards the target, if one can still brake after it; returns why not."""
        parameters = self._input
        parameters.current_position, parameters.current_velocity = self.position, self.velocity
        parameters.current_acceleration = self.acceleration
        parameters.target_position = self.target
        parameters.max_velocity = self.velocity_limit * MARGIN * self._slowed()
        try:
            result = self._towards.update(parameters, self._output)
            if result not in (self._ruckig.Result.Working, self._ruckig.Result.Finished):
                raise self._ruckig.RuckigError(f"no trajectory to the target: {result}")
            step = [
                np.array(getattr(self._output, f"new_{k}")) for k in ("position", "velocity", "acceleration")
            ]
            brake = Brake(self._brake_from(*step))
        except self._ruckig.RuckigError as error:  # its message may be empty
            self._continue_braking()
            return f"ruckig found no trajectory {error}".strip()
        fault = self._fault(brake)
        if fault:
            self._continue_braking()
        else:
            self.position, self.velocity, self.acceleration, self.brake = *step, brake
        return fault

    def _continue_braking(self) -> None:
        self.position, self.velocity, self.acceleration = self.brake.at(self.dt)
        self.brake = self.brake.later(self.dt)

    def _slowed(self) -> float:
        """The share of the joint speed limits at which the TCP, on its way to the target, stays under its own."""
        gap = self.target - self.position
        needed = np.abs(gap) / self.velocity_limit
        if needed.max() < 1e-6:
            return 1.0
        cruise = gap / needed.max()
        speed = float(np.linalg.norm(self.model.jacobian(self.position)[:3] @ cruise))
        return min(1.0, SHARE * self.contract.tool.max_speed / max(speed, 1e-9))

    def _brake_from(self, position: np.ndarray, velocity: np.ndarray, acceleration: np.ndarray) -> Any:
        parameters = self._braking
        parameters.current_position, parameters.current_velocity = position, velocity
        parameters.current_acceleration = acceleration
        trajectory = self._ruckig.Trajectory(len(position))
        result = self._stopper.calculate(parameters, trajectory)
        if result not in (self._ruckig.Result.Working, self._ruckig.Result.Finished):
            raise self._ruckig.RuckigError(f"no way to brake: {result}")
        return trajectory

    def _fault(self, brake: Brake) -> str:
        """What is first wrong on the way to standstill, looked at tick by tick; an empty string when nothing is."""
        tool = self.contract.tool
        position, velocity = brake.way(self.dt)
        half = np.full((len(position), 1), self.dt / 2)  # how long until this or another tick is nearest
        half[-1] = 0.0
        where, motion = self.model.motion(position, velocity)
        fast = np.any(np.abs(velocity) > self.velocity_limit + EPS, axis=1)
        outside = _outside(position, velocity * half, self.lower, self.upper)
        tool_fast = np.linalg.norm(motion, axis=1) > tool.max_speed
        left = _outside(where, motion * half, self.low, self.high).any(1)
        wrong = fast | outside.any(1) | tool_fast | left
        first = int(wrong.argmax()) if wrong.any() else len(wrong)
        touching = self._touching(position[:first])
        if touching or first == len(wrong):
            return touching
        if fast[first]:
            return "a joint would be too fast"
        if outside[first].any():
            return f"{self.contract.joints[int(outside[first].argmax())]} would leave its limits"
        return "the tool would be too fast" if tool_fast[first] else "the tool would leave its workspace"

    def _touching(self, positions: np.ndarray) -> str:
        """Which links would come too near each other along ``positions`` [k, n]; an empty string when none."""
        checked, spare = None, 0.0
        for position in positions:
            # No distance shrinks faster than the joints' levers allow: look again only when it could matter.
            if checked is None or self.model.levers @ np.abs(position - checked) > spare:
                distance, pair = self.model.clearance(position)
                checked, spare = position, distance - self.contract.collision.margin
                if spare < 0:
                    return f"{pair[0]} would come within {distance:.3f} m of {pair[1]}"
        return ""


def _outside(position: np.ndarray, onward: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Which coordinates are outside a box, or would be ``onward`` from here.

    Only what moves towards a side needs room on it: what rests on the box's very edge must be able to come back.
    """
    return (position + np.minimum(onward, 0) < low - EPS) | (position + np.maximum(onward, 0) > high + EPS)
