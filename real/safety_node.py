"""The process between everything and the arm: targets in, a 100 Hz command stream inside the limits out.

Not a certified safety function, see ``real.safety``. Whoever dies, the arm comes to rest inside its limits: without
targets the filter brakes; without the filter the last command is a trajectory that ends at rest.

Topics: ``/vla_rl/target`` (trajectory_msgs/JointTrajectory; one point: the arm's joints and the gripper's; none: hold) in,
``/vla_rl/stop`` (std_msgs/Bool, a button: true latches) in, the contract's command topics out,
``/vla_rl/safety/state`` (diagnostic_msgs/DiagnosticStatus) and ``/diagnostics`` out. Services (std_srvs/Trigger):
``/vla_rl/safety/stop`` and ``/vla_rl/safety/reset``, the only way out of a latched stop.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections import deque
from typing import Any

import numpy as np

from real.contract import RobotContract, load_contract
from real.gripper import gripper_port
from real.kinematics import ArmModel
from real.realtime import prefer_realtime
from real.ros2 import Latest, Link, Ticker, seconds, stamp_of
from real.safety import AHEAD, Mode, SafetyFilter, Setpoint
from vla_rl.errors import UserError

TAIL = 0.02
"""Seconds between the points of the braking trajectory that every command carries."""

JUMP = 0.05
"""Seconds by which the clock may differ from the schedule of ticks before the schedule follows at once."""

SLEW = 0.005
"""Share of a tick by which the schedule follows the clock otherwise: so much faster or slower is all carried out."""

SAG = 0.02
"""rad: an arm that stands this near to its command has not been moved."""

LOOK_AROUND = 10
"""Ticks between two looks for another commander."""

TARGET, STOP_BUTTON = "/vla_rl/target", "/vla_rl/stop"
STOP, RESET, STATE = "/vla_rl/safety/stop", "/vla_rl/safety/reset", "/vla_rl/safety/state"


class SafetyLoop:
    """The loop; ``run`` it in the main thread.

    Args:
        contract: the robot.
        link: its node.

    Raises:
        UserError: joint states missing, silent or without a joint of the contract; another commander.
    """

    def __init__(self, contract: RobotContract, link: Link) -> None:
        from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
        from sensor_msgs.msg import JointState
        from std_msgs.msg import Bool, Float64MultiArray
        from trajectory_msgs.msg import JointTrajectory

        self.contract, self.link = contract, link
        self.dt = 1 / contract.command.rate_hz
        self.filter = SafetyFilter(contract, ArmModel(contract), AHEAD * self.dt)
        self.states = link.listen(contract.joint_states.topic, JointState)
        link.require([self.states], 10.0)
        read_joints(self.states.newest.message, contract.joints)  # type: ignore[union-attr]
        link.alone(contract.command.topic)
        self.trajectory = contract.command.kind == "joint_trajectory"
        self.command = link.publisher(
            contract.command.topic, JointTrajectory if self.trajectory else Float64MultiArray
        )
        self.gripper = gripper_port(contract.gripper, link)
        self.state = link.publisher(STATE, DiagnosticStatus)
        self.diagnostics = link.publisher("/diagnostics", DiagnosticArray)
        self._lock = threading.Lock()
        self._asked: deque[tuple[str, Any]] = deque()
        link.listen(TARGET, JointTrajectory, lambda m: self._ask("target", m))
        link.listen(STOP_BUTTON, Bool, lambda m: m.data and self._ask("stop", "stop button"))
        link.trigger(STOP, self._on_stop)
        link.trigger(RESET, self._on_reset)
        self.recent: deque[tuple[float, Setpoint]] = deque(maxlen=AHEAD)
        self.lateness: deque[float] = deque(maxlen=int(10 / self.dt))
        self.refused = self.rival = ""
        self.shown: tuple[Mode, str] | None = None
        self.stopping = threading.Event()

    # ---- asked by others, in the executor's thread ------------------------------------------------------

    def _ask(self, kind: str, value: Any) -> None:
        with self._lock:
            self._asked.append((kind, value))

    def _on_stop(self) -> tuple[bool, str]:
        self._ask("stop", "stop service")
        return True, "stopping"

    def _on_reset(self) -> tuple[bool, str]:
        done: list[str] = []
        finished = threading.Event()
        self._ask("reset", (done, finished))
        if not finished.wait(1.0):
            return False, "the safety loop does not answer"
        return (False, done[0]) if done[0] else (True, "ready")

    # ---- the loop ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """Tick until ``stopping`` is set.

        Raises:
            UserError: another commander, before the arm was ever commanded from here; later, one latches a stop.
        """
        if self.filter.started:  # run before: the arm went on along its last command and rests at its end
            self.filter.skip(10**6)
            self.filter.stop("begun again")
            self.recent.clear()
        ticker = Ticker(self.link, self.dt)
        schedule, count = self.link.now(), 0
        while not self.stopping.is_set() and self.link.context.ok():
            missed = ticker.missed
            self.lateness.append(ticker.wait(self.stopping))
            missed = ticker.missed - missed
            now = self.link.now()
            schedule += (1 + missed) * self.dt
            away = now - schedule
            # Faster than this, the schedule itself would make the arm exceed its limits.
            schedule = (
                now if abs(away) > JUMP else schedule + np.clip(0.02 * away, -SLEW * self.dt, SLEW * self.dt)
            )
            setpoint = self.tick(now, schedule, missed)
            count += 1
            if count % LOOK_AROUND == 0:
                self._look_around()
            if (setpoint.mode, setpoint.reason) != self.shown or count % 10 == 0:
                self._show(setpoint, ticker, count)

    def _look_around(self) -> None:
        """Two commanders are never right: the one that has not begun leaves, the one that has stops."""
        topic = self.contract.command.topic
        self.rival = self.link.rival(topic, own=1)
        if self.rival and not self.filter.started:
            self.link.alone(topic, own=1)  # the same question, and time for its name
        elif self.rival:
            self.filter.stop(f"{self.rival} publishes {topic} too")

    def tick(self, now: float, schedule: float, missed: int = 0) -> Setpoint:
        """One period: take what was asked, filter, command."""
        measured, gripper = read_joints(self.states.newest.message, self.contract.joints), None  # type: ignore[union-attr]
        age = self.states.age()
        if missed and self.filter.started:
            self.filter.skip(missed)
        with self._lock:
            asked, self._asked = list(self._asked), deque()
        for kind, value in asked:
            if kind == "target":
                gripper = self._aim(value, now) or gripper
            elif kind == "stop":
                self.filter.stop(value)
            else:
                self._reset(measured, age, *value)
        setpoint = self.filter.tick(now, measured, age) if self.filter.started else self._resting(measured)
        # An arm that is not where we think must not be drawn there when its controller comes back; what it has got
        # from us ends at rest.
        # Nor one that has been away: it is at rest on its last command, or starts anew somewhere else.
        away = not 0 <= age <= self.contract.joint_states.max_age and self.filter.at_rest
        if self.filter.started and not self.filter.lost and not away:
            self._command(setpoint, schedule)
            if gripper is not None and setpoint.mode is Mode.RUN:
                self.gripper.send(*gripper)  # type: ignore[union-attr]
        return setpoint

    def _resting(self, measured: np.ndarray) -> Setpoint:
        still = np.zeros_like(measured)
        return Setpoint(measured, still, still, None, Mode.STOPPED, self.filter.latched)  # type: ignore[arg-type]

    def _reset(self, measured: np.ndarray, age: float, done: list[str], finished: threading.Event) -> None:
        reason = ""
        if not 0 <= age <= self.contract.joint_states.max_age:
            reason = f"joint states are {1e3 * age:.0f} ms old"
        elif self.rival:
            reason = (
                f"{self.rival} publishes {self.contract.command.topic} too: two commanders, stop one of them"
            )
        elif self.filter.started and not self.filter.latched:
            reason = ""  # nothing to reset
        elif self.filter.started and self.filter.brake.seconds > 0:
            reason = "the arm is still braking"
        else:
            # From where it is commanded to be, unless it was moved: no jump.
            kept = self.filter.started and np.abs(measured - self.filter.position).max() < SAG
            try:
                self.filter.reset(self.filter.position if kept else measured)
                self.recent.clear()
            except UserError as error:
                reason = str(error)
        done.append(reason)
        finished.set()

    def _aim(self, message: Any, now: float) -> Any:
        """Take a target; returns the gripper's position [1], if it has one."""
        if not message.points:
            self.filter.hold()
            return None
        names, gripper = list(message.joint_names), self.contract.gripper
        values = np.array(message.points[0].positions)
        age = now - seconds(message.header.stamp)
        missing = [j for j in self.contract.joints if j not in names]
        if missing or len(values) != len(names):
            self.refused = f"a target without {missing[0]}" if missing else "a target of another length"
        elif not -JUMP <= age <= self.contract.command.timeout:
            self.refused = f"a target that is {1e3 * age:.0f} ms old"
        else:
            arm = values[[names.index(j) for j in self.contract.joints]]
            self.refused = self.filter.aim(arm, now)
            if not self.refused and gripper is not None and gripper.joint in names:
                low, high = sorted((gripper.shut, gripper.open))
                value = values[names.index(gripper.joint)]
                if np.isfinite(value):
                    return (float(np.clip(value, low, high)),)
        return None

    def _command(self, setpoint: Setpoint, schedule: float) -> None:
        if not self.trajectory:
            from std_msgs.msg import Float64MultiArray

            self.command.publish(Float64MultiArray(data=setpoint.position.tolist()))
            return
        from builtin_interfaces.msg import Duration, Time
        from std_msgs.msg import Header
        from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

        due = schedule + AHEAD * self.dt
        points = [
            (time_, (s.position, s.velocity, s.acceleration)) for time_, s in self.recent if time_ > schedule
        ]
        points.append((due, (setpoint.position, setpoint.velocity, setpoint.acceleration)))
        left = setpoint.brake.seconds
        tail = [*np.arange(TAIL, left, TAIL), left] if left > 0 else []
        points += [(due + t, setpoint.brake.at(t)) for t in tail]
        self.recent.append((due, setpoint))
        self.command.publish(
            JointTrajectory(
                header=Header(stamp=stamp_of(schedule, Time)),
                joint_names=self.contract.joints,
                points=[
                    JointTrajectoryPoint(
                        positions=p.tolist(),
                        velocities=v.tolist(),
                        accelerations=a.tolist(),
                        time_from_start=stamp_of(time_ - schedule, Duration),
                    )
                    for time_, (p, v, a) in points
                ],
            )
        )

    def _show(self, setpoint: Setpoint, ticker: Ticker, count: int) -> None:
        from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
        from std_msgs.msg import Header

        level = {
            Mode.RUN: DiagnosticStatus.OK,
            Mode.HOLD: DiagnosticStatus.WARN,
            Mode.STOPPED: DiagnosticStatus.ERROR,
        }[setpoint.mode]
        late = np.array(self.lateness)
        values = {
            "mode": setpoint.mode.value,
            "refused": self.refused,
            "rejected": self.filter.rejected,
            "missed_periods": ticker.missed,
            "late_p99_ms": f"{1e3 * np.percentile(late, 99):.2f}",
            "late_max_ms": f"{1e3 * late.max():.2f}",
            "problems": "; ".join(self.link.problems()),
        }
        status = DiagnosticStatus(
            level=level,
            name="vla_rl safety (not a certified safety function)",
            message=setpoint.reason,
            hardware_id=self.contract.name,
            values=[KeyValue(key=k, value=str(v)) for k, v in values.items()],
        )
        self.state.publish(status)
        self.shown = (setpoint.mode, setpoint.reason)
        if count % 50 == 0:
            self.diagnostics.publish(DiagnosticArray(header=Header(stamp=self.link.stamp()), status=[status]))


def read_joints(message: Any, joints: list[str]) -> np.ndarray:
    """[n] positions of a JointState in our order, found by name.

    Raises:
        UserError: naming the joint it does not have.
    """
    where = {name: i for i, name in enumerate(message.name)}
    missing = [joint for joint in joints if joint not in where]
    if missing:
        raise UserError(
            f"joint_states has no {missing[0]}: it has {', '.join(message.name)}; correct joints in the contract"
        )
    return np.array([message.position[where[joint]] for joint in joints])


def describe(state: Latest) -> tuple[str, str]:
    """(mode, reason) from the newest message of ``/vla_rl/safety/state``; mode is empty before the first."""
    if state.newest is None:
        return "", ""
    message = state.newest.message
    return next((v.value for v in message.values if v.key == "mode"), ""), message.message


def main(arguments: list[str] | None = None) -> int:
    """``python -m real.safety_node ROBOT [--ros-args ...]``."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m real.safety_node", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("robot", help="contract: a name of configs/robot, or a YAML file")
    cut = arguments.index("--ros-args") if "--ros-args" in arguments else len(arguments)
    options = parser.parse_args(arguments[:cut])
    link = None
    try:
        contract = load_contract(options.robot)
        link = Link("vla_rl_safety", arguments[cut:])
        loop = SafetyLoop(contract, link)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: loop.stopping.set())
        print(f"safety for {contract.name}: {prefer_realtime()}; not a certified safety function", flush=True)
        loop.run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        if link is not None:
            time.sleep(0.05)  # the last message leaves before the node does
            link.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
