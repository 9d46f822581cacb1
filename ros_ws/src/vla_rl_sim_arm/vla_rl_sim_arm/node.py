"""The simulated arm as a ROS 2 node: a Panda in MuJoCo that speaks what ros2_control arms speak.

``python node.py`` here, ``ros2 launch vla_rl_sim_arm sim_arm.launch.py`` under a ROS installation.

Publishes ``/joint_states`` (100 Hz), the cameras of its contract, ``/cube/pose``, ``/lifted`` (std_msgs/Bool) and
``/diagnostics``; takes joint trajectories, joint positions and gripper positions; ``/scene/reset`` (std_srvs/Trigger)
puts arm and cube to the start of the next seed. Every fault is a parameter that can be set while it runs.
"""

from __future__ import annotations

import random
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from real.contract import load_contract
from real.gripper_server import GripperServer
from real.ros2 import Link, Ticker, seconds, stamp_of
from sim.arm_world import ArmWorld
from sim.command_limits import CommandLimits
from sim.trajectory_player import TrajectoryPlayer

PARAMETERS = {
    # name: (default, what it does)
    "robot": ("sim_arm", "contract (configs/robot) whose topics and home it takes"),
    "seed": (0, "scene of the next reset; counts up"),
    "camera_rate": (20.0, "pictures per second"),
    "latency": (0.0, "seconds by which joint states leave late (their stamp is right)"),
    "camera_latency": (0.0, "seconds by which pictures leave late"),
    "drop_states": (0.0, "share of joint states that are lost"),
    "drop_commands": (0.0, "share of commands that are lost"),
    "drop_frames": (0.0, "share of pictures that are lost"),
    "joint_noise": (0.0, "standard deviation of the reported joints, rad"),
    "shuffle_joints": (False, "report the joints in another order each time"),
    "freeze_camera": (False, "pictures stop coming"),
    "clock_offset": (0.0, "seconds by which this machine's clock is wrong: added to every stamp"),
    "kill_controller": (False, "the controller ignores commands; the drives hold the arm where it is"),
    "speed": (1.0, "simulated seconds per second; other than 1 publishes /clock for use_sim_time"),
    "log": ("", "file for every tick's reference and motion (float64 rows), for an independent check"),
}

LOG_COLUMNS = (
    "time",
    *(f"{k}{i}" for k in ("reference", "joint", "velocity") for i in range(7)),
    "finger",
    "cube_z",
)
"""Of the log: seconds of the simulation, rad, rad, rad/s, metres."""


CATCH_UP = 1.0
"""Seconds of physics made up for after a stall; more is skipped."""


class SimArm:
    """The node.

    Args:
        arguments: as on a ROS command line.
    """

    def __init__(self, arguments: list[str]) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from geometry_msgs.msg import PoseStamped
        from rcl_interfaces.msg import ParameterDescriptor
        from sensor_msgs.msg import CompressedImage, JointState
        from std_msgs.msg import Bool, Float64MultiArray
        from trajectory_msgs.msg import JointTrajectory

        self.link = Link("sim_arm", arguments)
        node = self.link.node
        for name, (default, words) in PARAMETERS.items():
            node.declare_parameter(name, default, ParameterDescriptor(description=words))
        self.contract = load_contract(self["robot"])
        names = tuple(self.contract.cameras)
        size = max((camera.height for camera in self.contract.cameras.values()), default=96)
        self.world = ArmWorld(self.contract.home, names, size, self.contract.limits.velocity)
        self.world.reset(self["seed"])
        self.player = TrajectoryPlayer(self.world.joints)
        self.limits = CommandLimits(self.contract.limits.velocity, self.contract.limits.acceleration)
        self.dt = 1 / self.contract.command.rate_hz
        self.random = random.Random(0)
        self._lock = threading.Lock()
        self._commands: deque[tuple[str, Any, float]] = deque(maxlen=64)
        self._reset_asked: threading.Event | None = None
        self._late: deque[tuple[float, Any, Any]] = deque()
        self.states = self.link.publisher(self.contract.joint_states.topic, JointState)
        self.pictures = {
            name: self.link.publisher(camera.topic, CompressedImage)
            for name, camera in self.contract.cameras.items()
        }
        self.poses = self.link.publisher("/cube/pose", PoseStamped)
        self.lifted = self.link.publisher("/lifted", Bool)
        self.diagnostics = self.link.publisher("/diagnostics", DiagnosticArray)
        self.clock = self._clock() if self["speed"] != 1.0 else None
        command, gripper = self.contract.command, self.contract.gripper
        trajectory = (
            command.topic
            if command.kind == "joint_trajectory"
            else "/joint_trajectory_controller/joint_trajectory"
        )
        position = command.topic if command.kind == "position" else "/forward_position_controller/commands"
        self.link.listen(trajectory, JointTrajectory, lambda m: self._hear("trajectory", m))
        self.link.listen(position, Float64MultiArray, lambda m: self._hear("position", m))
        self.fingers = None
        if gripper is not None and gripper.kind == "topic":
            self.link.listen(gripper.topic, Float64MultiArray, lambda m: self._hear("gripper", m))
        elif gripper is not None:
            self.fingers = GripperServer(
                gripper, self.link, lambda x: self._hear("gripper", Float64MultiArray(data=[x]))
            )
        self.link.trigger("/scene/reset", self._ask_reset)
        self.rows: list[list[float]] = []
        self.stopping = threading.Event()
        self.time = 0.0
        self.limits.rest(self.world.joints, self.time)
        self.ticks = 0
        self._done: dict[str, int] = {}

    def __getitem__(self, name: str) -> Any:
        """A parameter's value now."""
        return self.link.node.get_parameter(name).value

    def _clock(self) -> Any:
        from rosgraph_msgs.msg import Clock

        return self.link.publisher("/clock", Clock)

    def _hear(self, kind: str, message: Any) -> None:
        if self.random.random() >= self["drop_commands"]:
            with self._lock:
                self._commands.append((kind, message, self.now()))

    def _ask_reset(self) -> tuple[bool, str]:
        # Answered at once, done by the loop that owns the physics: the executor never waits.
        with self._lock:
            self._commands.append(("reset", None, 0.0))
        return True, f"scene {self['seed']}"

    @property
    def reference(self) -> np.ndarray:
        """[7] rad: what the drives follow now."""
        return self.limits.motion[0]

    def now(self) -> float:
        """Seconds of the clock that stamps carry."""
        return self.time if self.clock is not None else self.link.now()

    def run(self) -> None:
        """Step, publish, sleep; until ``stopping``. Physics that fell behind catches up, as a real arm goes on."""
        ticker = Ticker(self.link, self.dt / self["speed"])
        every = max(1, round(1 / (self["camera_rate"] * self.dt)))
        self.time = self.link.now()
        while not self.stopping.is_set() and self.link.context.ok():
            until = self.time + self.dt if self.clock is not None else self.link.now()
            if not -1.0 < until - self.time < CATCH_UP:
                self.time = until - self.dt
            while self.time + self.dt <= until + 1e-6:
                self._tick()
            if self.fingers is not None:
                self.fingers.update(self.time, self.world.finger)
            self._report(every)
            if self._due("diagnose", 100):
                self._diagnose(ticker)
            ticker.wait()
        self._flush()
        self.world.close()

    def _due(self, what: str, every: int) -> bool:
        """Once per ``every`` ticks, however many of them were made up for at once."""
        period = self.ticks // every
        due, self._done[what] = self._done.get(what, 0) != period, period
        return due

    def _tick(self) -> None:
        self._take()
        now = self.time
        if self["kill_controller"]:
            self.player.rest(self.reference)
        self.world.advance(self.dt, lambda t: self.limits.follow(self.player.at, now + t))
        self.time += self.dt
        self.ticks += 1
        self._log()

    # ---- in ---------------------------------------------------------------------------------------------

    def _take(self) -> None:
        with self._lock:
            commands, self._commands = list(self._commands), deque(maxlen=64)
        for kind, message, arrival in commands:
            if kind == "reset":
                self._reset()
            elif kind == "gripper":
                self.world.finger_target = float(np.clip(message.data[0], 0.0, 0.04))
            elif not self["kill_controller"]:
                self._follow(kind, message, arrival)

    def _follow(self, kind: str, message: Any, arrival: float) -> None:
        if kind == "position":
            self.player.follow([self.time + self.dt], np.array([message.data]), None, None, self.time)
            return
        try:
            order = [list(message.joint_names).index(joint) for joint in self.contract.joints]
        except ValueError as error:
            self.link.node.get_logger().error(f"trajectory refused: {error}")
            return
        start = seconds(message.header.stamp) or arrival
        points = message.points
        stacks = [
            np.array([getattr(p, key) for p in points])[:, order] if len(getattr(points[0], key)) else None
            for key in ("positions", "velocities", "accelerations")
        ]
        times = [start + seconds(p.time_from_start) for p in points]
        assert stacks[0] is not None
        self.player.follow(times, stacks[0], stacks[1], stacks[2], self.time)

    def _reset(self) -> None:
        from rclpy.parameter import Parameter

        seed = self["seed"]
        self.world.reset(seed)
        self.player.rest(self.world.joints)
        self.limits.rest(self.world.joints, self.time)
        self._late.clear()
        self.link.node.set_parameters([Parameter("seed", value=seed + 1)])

    # ---- out --------------------------------------------------------------------------------------------

    def _report(self, every: int) -> None:
        from builtin_interfaces.msg import Time

        now = self.time
        if self.clock is not None:
            from rosgraph_msgs.msg import Clock

            self.clock.publish(Clock(clock=stamp_of(now, Time)))
        stamp = stamp_of(now + self["clock_offset"], Time)
        self._send(self.states, self._joint_state(stamp), now + self["latency"], self["drop_states"])
        self._send(self.poses, self._pose(stamp), now, 0.0)
        if self._due("look", every) and not self["freeze_camera"]:
            for name, picture in self.world.look().items():
                self._send(
                    self.pictures[name],
                    _jpeg(picture, stamp),
                    now + self["camera_latency"],
                    self["drop_frames"],
                )
        if self._due("lifted", 5):
            from std_msgs.msg import Bool

            self.lifted.publish(Bool(data=self.world.success))
        while self._late and self._late[0][0] <= now:
            _, publisher, message = self._late.popleft()
            publisher.publish(message)

    def _send(self, publisher: Any, message: Any, when: float, lost: float) -> None:
        if lost and self.random.random() < lost:
            return
        if when <= self.time:
            publisher.publish(message)
        else:
            self._late.append((when, publisher, message))
            self._late = deque(sorted(self._late, key=lambda x: x[0]))

    def _joint_state(self, stamp: Any) -> Any:
        from sensor_msgs.msg import JointState
        from std_msgs.msg import Header

        noise = self["joint_noise"]
        joints = [*self.contract.joints]
        values = self.world.joints + (np.random.normal(0, noise, 7) if noise else 0.0)
        positions, speeds = [*values], [*self.world.joint_velocity]
        if self.contract.gripper is not None:
            joints.append(self.contract.gripper.joint)
            positions.append(self.world.finger)
            speeds.append(0.0)
        order = list(range(len(joints)))
        if self["shuffle_joints"]:
            self.random.shuffle(order)
        return JointState(
            header=Header(stamp=stamp),
            name=[joints[i] for i in order],
            position=[float(positions[i]) for i in order],
            velocity=[float(speeds[i]) for i in order],
        )

    def _pose(self, stamp: Any) -> Any:
        from geometry_msgs.msg import Point, Pose, PoseStamped
        from std_msgs.msg import Header

        x, y, z = (float(v) for v in self.world.cube_position)
        return PoseStamped(
            header=Header(stamp=stamp, frame_id="base"), pose=Pose(position=Point(x=x, y=y, z=z))
        )

    def _diagnose(self, ticker: Ticker) -> None:
        from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

        dead = self["kill_controller"]
        status = DiagnosticStatus(
            level=DiagnosticStatus.ERROR if dead else DiagnosticStatus.OK,
            name="sim_arm",
            message="controller is dead" if dead else "running",
            values=[KeyValue(key="missed_periods", value=str(ticker.missed))],
        )
        from std_msgs.msg import Header

        self.diagnostics.publish(DiagnosticArray(header=Header(stamp=self.link.stamp()), status=[status]))
        self._flush()

    def _log(self) -> None:
        if self["log"]:
            world = self.world
            row = [
                self.time,
                *self.reference,
                *world.joints,
                *world.joint_velocity,
                world.finger,
                world.cube_position[2],
            ]
            self.rows.append([float(v) for v in row])

    def _flush(self) -> None:
        if self.rows:
            with open(Path(self["log"]), "ab") as handle:
                np.array(self.rows).tofile(handle)
            self.rows = []

    def close(self) -> None:
        """Leave the network."""
        self.link.close()


def _jpeg(picture: np.ndarray, stamp: Any) -> Any:
    import array

    import cv2
    from sensor_msgs.msg import CompressedImage
    from std_msgs.msg import Header

    _, data = cv2.imencode(".jpg", np.ascontiguousarray(picture.transpose(1, 2, 0)[..., ::-1]))
    return CompressedImage(header=Header(stamp=stamp), format="jpeg", data=array.array("B", data.tobytes()))


def main() -> None:
    """Run until interrupted or terminated."""
    import signal

    arm = SimArm(sys.argv[1:])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: arm.stopping.set())
    print("the simulated arm is running", flush=True)
    try:
        arm.run()
    finally:
        arm.close()


if __name__ == "__main__":
    main()
