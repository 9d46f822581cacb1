"""A leader arm: the robot follows it while the button is held, from wherever both were."""

import time

import numpy as np
import pytest
from sensor_msgs.msg import JointState, Joy
from test_joy import Up

from real.ros2 import Link
from real.teleop.leader import Leader
from vla_rl.errors import UserError
from vla_rl.keys import STATE
from vla_rl.policies.intervened import Intervened

TCP = slice(7, 10)


class Arm:
    """A leader like the robot, and a pedal."""

    def __init__(self, contract):
        self.link, self.names = Link("leader"), contract.joints
        self.states = self.link.publisher("/leader/joint_states", JointState)
        self.pedal = self.link.publisher("/joy", Joy)
        self.joints, self.grip = np.array(contract.home) + 0.2, 0.0

    def say(self, held, speak=True):
        if speak:
            order = np.random.permutation(8)
            names, values = [*self.names, "trigger"], [*self.joints, self.grip]
            header = JointState().header
            header.stamp = self.link.stamp()
            message = JointState(header=header, name=[names[i] for i in order])
            message.position = [float(values[i]) for i in order]
            self.states.publish(message)
        self.pedal.publish(Joy(buttons=[int(held), 0, 0, 0, 0]))


@pytest.fixture(scope="module")
def arm(env):
    arm = Arm(env.contract)
    yield arm
    arm.link.close()


@pytest.fixture
def leader(env, arm):
    import threading

    stop = threading.Event()

    def talk():
        while not stop.wait(0.05):
            arm.say(False)

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        leader = Leader(env, gripper="trigger", gripper_range=(0.0, 0.5), success=1, failure=2)
    finally:
        stop.set()
        thread.join()
    yield leader
    env.outcome = None


def drive(env, leader, arm, script):
    """``script``: (held, change of the leader's second joint, trigger, does it speak) of each step."""
    observation, _ = env.reset(seed=1)
    policy = Intervened(Up(env), leader)
    state, steps = policy.initial_state(1), []
    for held, move, grip, speaks in script:
        arm.joints[1] += move
        arm.grip = grip
        arm.say(held, speaks)
        time.sleep(0.01)
        output, state = policy.act(observation, state)
        observation, *_ = env.step(output["action"])
        steps.append((output, observation))
    return steps


def test_the_robot_goes_where_the_leader_has_gone_from_wherever_both_were(env, arm, leader):
    model, before = leader.model, arm.joints.copy()
    still = [(True, 0.0, 0.0, True)] * 4
    steps = drive(
        env, leader, arm, [(False, 0, 0.0, True)] * 2 + still + [(True, 0.01, 0.0, True)] * 10 + still * 4
    )
    assert not steps[0][0]["intervention"].item()
    assert all(output["intervention"].item() for output, _ in steps[3:])
    assert (
        steps[4][0]["action"][0, :3].abs().max() < 0.05
    )  # taken over: nothing moves, although it stands elsewhere
    gone = model.pose(arm.joints)[0] - model.pose(before)[0]
    assert np.abs(gone).max() > 0.03
    moved = (steps[-1][1][STATE] - steps[5][1][STATE])[0, TCP].numpy()
    np.testing.assert_allclose(moved, gone, atol=0.008)


def test_its_gripper_is_followed_once_it_is_used(env, arm, leader):
    script = [(True, 0, 0.0, True)] * 4 + [(True, 0, 0.4, True)] * 2 + [(True, 0, 0.0, True)] * 3
    grips = [float(output["action"][0, -1]) for output, _ in drive(env, leader, arm, script)]
    assert grips[3] == 1.0  # the robot's is open, the leader's shut: no jump
    assert grips[5] == pytest.approx(0.6, abs=1e-5) and grips[-1] == -1.0


def test_a_leader_that_vanishes_keeps_the_arm_still_and_the_policy_away(env, arm, leader):
    script = [(True, 0.0, 0.0, True)] * 3 + [(True, 0.0, 0.0, False)] * 12 + [(False, 0, 0.0, True)] * 3
    steps = drive(env, leader, arm, script)
    gone = [output for output, _ in steps[11:15]]
    assert all(o["intervention"].item() and (o["action"][0, :3] == 0).all() for o in gone)
    assert not steps[-1][0]["intervention"].item()
    # and without a leader nothing begins
    steps = drive(env, leader, arm, [(False, 0, 0.0, False)] * 10 + [(True, 0, 0.0, False)] * 3)
    assert not any(output["intervention"].item() for output, _ in steps[10:])


def test_what_does_not_fit_is_named(env, arm, leader):
    with pytest.raises(UserError, match="teleop.jump: there is no such button"):
        Leader(env, jump=3)
    with pytest.raises(UserError, match="teleop.success and teleop.deadman are both button 0"):
        Leader(env, success=0)
    with pytest.raises(UserError, match="/leader/nothing has no publisher"):
        Leader(env, "/leader/nothing")
