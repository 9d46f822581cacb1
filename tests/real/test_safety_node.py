"""The safety process between real processes: it starts on demand, holds what is stale, stops for good, dies well."""

import time

import numpy as np
import psutil
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from real.contract import load_contract
from real.nodes import Nodes, safety, sim_arm
from real.ros2 import Link, seconds
from real.safety_node import RESET, STATE, STOP, STOP_BUTTON, TARGET, describe, read_joints
from vla_rl.errors import UserError

CONTRACT = load_contract("sim_arm")
HOME, LIMITS = np.array(CONTRACT.home), CONTRACT.limits


class Driver:
    """Sends targets and watches."""

    def __init__(self):
        self.link = Link("driver")
        self.joints = self.link.listen("/joint_states", JointState)
        self.state = self.link.listen(STATE, DiagnosticStatus)
        self.button = self.link.publisher(STOP_BUTTON, Bool)
        self.target = self.link.publisher(TARGET, JointTrajectory)
        self.link.require([self.joints, self.state], 20.0)

    def where(self):
        return read_joints(self.joints.newest.message, CONTRACT.joints)

    def speed(self):
        message = self.joints.newest.message
        return np.abs([message.velocity[message.name.index(j)] for j in CONTRACT.joints])

    def send(self, joints, age=0.0):
        stamp = self.link.node.get_clock().now().nanoseconds - int(age * 1e9)
        header = Header()
        header.stamp.sec, header.stamp.nanosec = stamp // 10**9, stamp % 10**9
        point = JointTrajectoryPoint(positions=[float(j) for j in joints])
        self.target.publish(JointTrajectory(header=header, joint_names=CONTRACT.joints, points=[point]))

    def go(self, goal):
        until = time.monotonic() + 20
        while np.abs(self.where() - goal).max() > 0.01 and time.monotonic() < until:
            gap = goal - self.where()
            self.send(self.where() + gap * min(1.0, 0.2 / np.abs(gap).max()))
            time.sleep(0.03)
        assert np.abs(self.where() - goal).max() < 0.012, describe(self.state)

    def swing(self, seconds):
        """Move the first joint, fast enough to be moving at the end."""
        start, here = time.monotonic(), self.where()
        while (t := time.monotonic() - start) < seconds:
            self.send(here + np.eye(7)[0] * 0.25 * np.sin(3 * t))
            time.sleep(0.03)

    def wait_for(self, mode, words="", timeout=10.0):
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            got = describe(self.state)
            if got[0] == mode and words in got[1]:
                return got
            time.sleep(0.01)
        raise AssertionError(f"still {describe(self.state)}, not {mode} {words!r}")

    def settle(self):
        until = time.monotonic() + 10
        while self.speed().max() > 0.01 and time.monotonic() < until:
            time.sleep(0.02)
        return self.where()


@pytest.fixture
def driver(robot, reset):
    driver = Driver()
    try:
        if "stopped" in describe(driver.state):
            reset(driver.link)
        driver.go(HOME)
        yield driver
    finally:
        driver.link.close()


def test_it_follows_targets_and_holds_without_them(driver):
    driver.go(HOME + 0.1)
    driver.wait_for("hold", "no target for")


def test_what_is_old_from_the_future_not_finite_or_incomplete_is_refused(driver):
    before = driver.settle()
    for _ in range(5):
        driver.send(before + 0.2, age=1.0)
        driver.send(before + 0.2, age=-5.0)
        driver.send(before * np.nan)
        driver.send(before + 2.0)
        driver.target.publish(
            JointTrajectory(joint_names=["elbow"], points=[JointTrajectoryPoint(positions=[1.0])])
        )
        time.sleep(0.05)
    assert describe(driver.state)[0] == "hold"
    assert np.abs(driver.settle() - before).max() < 0.005


@pytest.mark.parametrize("how", ["service", "button"])
def test_a_stop_is_latched_until_reset(driver, reset, how):
    driver.swing(1.2)
    if how == "service":
        driver.link.pull(STOP)
    else:
        driver.button.publish(Bool(data=True))
    driver.wait_for("stopped", f"stop {how}")
    stopped = driver.settle()
    driver.button.publish(Bool(data=False))  # letting the button go does not clear it
    driver.swing(0.5)
    assert describe(driver.state)[0] == "stopped"
    assert np.abs(driver.where() - stopped).max() < 0.005
    reset(driver.link)
    driver.wait_for("hold")
    driver.swing(0.5)
    assert np.abs(driver.where() - stopped).max() > 0.02


@pytest.mark.parametrize(
    ("parameter", "value", "mode", "words"),
    [("drop_states", 1.0, "hold", "ms old"), ("kill_controller", True, "stopped", "its controller is gone")],
)
def test_a_silent_arm_is_held_and_a_dead_controller_stops(driver, parameter, value, mode, words):
    driver.settle()
    driver.link.set_parameter("sim_arm", parameter, value, 10.0)
    start, here = time.monotonic(), driver.where()
    try:
        while describe(driver.state)[0] != mode or words not in describe(driver.state)[1]:
            assert time.monotonic() - start < 10, describe(driver.state)
            driver.send(here + 0.3 * np.eye(7)[0])
            time.sleep(0.03)
    finally:
        driver.link.set_parameter("sim_arm", parameter, type(value)(0), 10.0)
    if mode == "hold":  # goes on by itself
        until = time.monotonic() + 10
        while describe(driver.state)[0] != "run" and time.monotonic() < until:
            driver.send(driver.where())
            time.sleep(0.03)
        assert describe(driver.state)[0] == "run"


def test_an_arm_that_comes_back_elsewhere_is_not_dragged(driver, reset, robot):
    driver.go(HOME + np.array([0.0, 0.4, 0.0, 0.4, 0.0, 0.0, 0.0]))
    robot.kill("sim_arm")
    driver.wait_for("hold", "joint states are")
    before = len(np.fromfile(robot.log)) // 24
    robot.start("sim_arm", sim_arm(log=robot.log))  # at home again, 0.4 rad from what was commanded last
    driver.wait_for("stopped", "its controller is gone")
    time.sleep(1.5)  # the arm writes its log every second
    rows = np.fromfile(robot.log).reshape(-1, 24)[before:]
    assert len(rows) and np.abs(rows[:, 15:22]).max() < 0.1
    reset(driver.link)


def test_shuffled_joints_make_no_difference(driver):
    driver.link.set_parameter("sim_arm", "shuffle_joints", True, 10.0)
    try:
        before = driver.settle()
        driver.swing(1.0)
        assert "stopped" not in describe(driver.state)
        assert np.abs(driver.where() - before)[1:].max() < 0.01
    finally:
        driver.link.set_parameter("sim_arm", "shuffle_joints", False, 10.0)


def test_a_second_safety_node_is_refused(robot, tmp_path):
    with Nodes(tmp_path) as more, pytest.raises(UserError, match="another .* publishes .* two commanders"):
        process = more.start(
            "second", safety("sim_arm")
        )  # seen at once, or, on a busy machine, a little later
        assert process.wait(20.0) == 2
        raise UserError((tmp_path / "second.log").read_text())


def test_another_commander_stops_the_arm_until_it_has_gone(driver, reset):
    rogue = Link("rogue")
    try:
        rogue.publisher(CONTRACT.command.topic, JointTrajectory)
        driver.wait_for("stopped", "publishes /joint_trajectory_controller/joint_trajectory too")
        driver.settle()
        with pytest.raises(
            UserError, match=f"{RESET} refuses: (rogue|another node) publishes .* two commanders"
        ):
            driver.link.pull(RESET, 10.0)
    finally:
        rogue.close()
    driver.wait_for("stopped")
    reset(driver.link)  # refused until it is known to be gone
    driver.wait_for("hold")


def test_after_a_pause_of_its_process_the_commands_are_no_faster_than_their_velocities(driver, robot):
    stamps = []
    driver.link.listen(
        CONTRACT.command.topic, JointTrajectory, lambda message: stamps.append(seconds(message.header.stamp))
    )
    driver.swing(0.5)
    process = psutil.Process(robot.processes["safety"].pid)
    for pause in (0.03, 0.045, 0.06, 0.12):
        process.suspend()
        time.sleep(pause)
        process.resume()
        driver.swing(0.6)
    periods = np.diff(stamps) * CONTRACT.command.rate_hz
    assert len(periods) > 150 and (periods > 1.5).any()  # the pauses
    # A period of 0.9 would make the arm a ninth faster than any velocity that was checked.
    assert np.abs(periods[periods < 1.5] - 1).max() < 0.0051


def test_a_killed_safety_node_leaves_the_arm_at_rest_and_no_limit_was_ever_exceeded(driver, reset, robot):
    driver.swing(1.2)
    robot.kill("safety")
    time.sleep(1.0)
    assert driver.speed().max() < 0.01
    robot.start("safety", safety("sim_arm"))
    driver.wait_for("stopped", "not started")
    reset(driver.link)
    time.sleep(1.5)  # the arm writes its log every second
    rows = np.fromfile(robot.log).reshape(-1, 24)
    joints, velocity = rows[:, 8:15], rows[:, 15:22]
    assert (joints > np.array(LIMITS.lower)).all() and (joints < np.array(LIMITS.upper)).all()
    assert (np.abs(velocity) < np.array(LIMITS.velocity) * 1.02).all()
    assert np.abs(velocity[:, 0]).max() > 0.3  # it did move
