"""A gripper driven by an action, over real DDS: few goals, one at a time, and clear words when nobody serves it."""

import time
from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from real.contract import Gripper, contract_of, load_contract
from real.gripper import ActionPort, gripper_port
from real.nodes import Nodes, safety, sim_arm
from real.ros2 import Link
from vla_rl.config import CONFIGS
from vla_rl.errors import UserError

pytest.importorskip("control_msgs", reason="it has no wheel: ros_ws/control_msgs/build makes it")

ACTION = "/gripper_controller/gripper_cmd"
GRIPPER = Gripper(ACTION, "finger", shut=0.0, open=0.04, kind="action", effort=10.0)


class Hand:
    """A gripper's server, and fingers that move when told to."""

    def __init__(self, gripper):
        from real.gripper_server import GripperServer

        self.link, self.target, self.finger = Link("hand"), 0.0, 0.0
        self.server = GripperServer(gripper, self.link, self.go)

    def go(self, target):
        self.target = target

    def move(self, seconds, speed=1.0):
        """Fingers move at ``speed`` m/s for so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.finger += max(-0.01 * speed, min(0.01 * speed, self.target - self.finger))
            self.server.update(time.monotonic(), self.finger)
            time.sleep(0.01)


@pytest.fixture(params=["action", "parallel_action"])
def pair(request):
    gripper = replace(GRIPPER, kind=request.param)
    hand, link = Hand(gripper), Link("safety")
    port = ActionPort(gripper, link, 10.0)
    yield hand, port
    link.close()
    hand.link.close()


def until(condition, hand, speed=1.0):
    begun = time.monotonic()
    while not condition() and time.monotonic() - begun < 10:
        hand.move(0.05, speed)
    assert condition()


def test_a_goal_goes_out_when_the_target_changes(pair):
    hand, port = pair
    for _ in range(20):
        port.send(0.04)
    until(lambda: hand.finger == 0.04 and not port._under_way, hand)
    for value in (0.04, 0.0395, 0.039, 0.04):  # within the tolerance
        port.send(value)
    hand.move(0.2)
    assert hand.server.received == [0.04]
    port.send(0.0)
    until(lambda: abs(hand.finger) < 1e-9, hand)
    assert hand.server.received == [0.04, 0.0] and port.goals == 2


def test_a_goal_under_way_is_cancelled_for_the_newest_one(pair):
    hand, port = pair
    port.send(0.04)
    until(lambda: hand.server.received == [0.04], hand, speed=0.01)
    for value in (0.03, 0.01, 0.0):
        port.send(value)
    until(lambda: len(hand.server.received) == 2, hand, speed=0.01)
    assert hand.server.received[-1] == 0.0, "what came in between is out of date"
    until(lambda: not port._under_way, hand)
    assert hand.finger < 1e-3


def test_fingers_that_hold_something_end_the_goal(pair):
    hand, port = pair
    hand.finger = 0.02
    port.send(0.0)
    until(lambda: hand.server.received == [0.0], hand, speed=0.0)
    until(lambda: not port._under_way, hand, speed=0.0)
    port.send(0.04)
    until(lambda: hand.finger == 0.04, hand)


def test_a_server_that_comes_back_gets_the_target_again():
    hand, link = Hand(GRIPPER), Link("safety")
    port = ActionPort(GRIPPER, link, 10.0)
    port.send(0.04)
    until(lambda: hand.server.received == [0.04], hand, speed=0.0)
    hand.link.close()
    begun = time.monotonic()
    while port.client.server_is_ready() and time.monotonic() - begun < 20:
        time.sleep(0.05)
    port.send(0.04)
    hand = Hand(GRIPPER)

    def there():
        port.send(0.04)
        return hand.finger == 0.04

    until(there, hand)
    link.close()
    hand.link.close()


def test_what_is_wrong_is_named():
    link = Link("safety")
    with pytest.raises(UserError, match="nobody serves the action /gripper_controller/gripper_cmd"):
        gripper_port(GRIPPER, link, 0.5)
    assert gripper_port(None, link) is None
    link.close()
    values = OmegaConf.load(CONFIGS / "robot/sim_arm.yaml")
    for key, value, words in (
        ("kind", "service", "gripper.kind=service: did you mean|gripper.kind=service"),
        ("tolerance", 1.5, "gripper.tolerance=1.5"),
        ("effort", -1, "gripper.effort"),
    ):
        changed = OmegaConf.merge(values, {"gripper": {key: value}})
        with pytest.raises(UserError, match=words):
            contract_of(changed)
    assert load_contract("fr3").gripper.topic == "/franka_gripper/gripper_action"


def test_the_arm_lifts_the_cube_with_it(tmp_path, monkeypatch):
    """Arm, safety node and expert as processes and streams of their own; the gripper is an action."""
    from real.robot_env import RobotEnv
    from sim.experts import expert
    from vla_rl.rollout.collector import Collector

    monkeypatch.setenv("ROS_DOMAIN_ID", "0")  # beside the arm of the other tests
    values = OmegaConf.load(CONFIGS / "robot/sim_arm.yaml")
    values = OmegaConf.merge(values, {"gripper": {"kind": "action", "topic": ACTION}})
    path = tmp_path / "arm.yaml"
    OmegaConf.save(values, path)
    with Nodes(tmp_path) as nodes:
        nodes.start("sim_arm", sim_arm(robot=path))
        nodes.start("safety", safety(str(path)))
        env = RobotEnv(str(path), cameras=[], max_episode_steps=120)
        collector = Collector(env, expert(env), lambda number, _: number)
        collector.begin()
        done = []
        while not done:
            done = collector.step(deterministic=True)
        assert done[0].success
        env.close()
