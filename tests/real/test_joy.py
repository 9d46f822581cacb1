"""A person with a gamepad: takes over without a jump, says how it went, stops the arm, and may vanish."""

import time
from dataclasses import replace

import pytest
import torch
from sensor_msgs.msg import Joy as Message
from tensordict import TensorDict

from real.robot_env import RobotFault
from real.ros2 import Link
from real.teleop.joy import Joy
from vla_rl.errors import UserError
from vla_rl.keys import STATE
from vla_rl.policies.base import PolicySpec
from vla_rl.policies.intervened import Intervened
from vla_rl.policies.open_loop import OpenLoop

BUTTONS = {"deadman": 4, "open": 0, "shut": 1, "success": 3, "failure": 2, "discard": 7, "stop": 6}
SETTINGS = BUTTONS | {"axes": [1, -2, 3]}


class Pad:
    """Publishes what a gamepad would."""

    def __init__(self):
        self.link = Link("pad")
        self.topic = self.link.publisher("/joy", Message)

    def push(self, *names, axes=(0.0, 0.0, 0.0)):
        buttons = [0] * 8
        for name in names:
            buttons[BUTTONS[name]] = 1
        self.topic.publish(Message(axes=[float(a) for a in axes], buttons=buttons))


class Up:
    """A policy that always goes up."""

    def __init__(self, env):
        self.spec = PolicySpec(env.env_spec.action_dim)

    def initial_state(self, batch_size):
        return TensorDict({}, [batch_size])

    def needs_images(self, state):
        return torch.zeros(state.batch_size[0], dtype=torch.bool)

    def act(self, observation, state, *, deterministic=False):
        return TensorDict({"action": torch.tensor([[0.0, 0.0, 0.5, 1.0]])}, [1]), state


@pytest.fixture(scope="module")
def pad(robot):
    pad = Pad()
    yield pad
    pad.link.close()


@pytest.fixture
def joy(env, pad):
    joy = Joy(env, **SETTINGS)
    until = time.monotonic() + 10
    while joy.heard.newest is None and time.monotonic() < until:
        pad.push()
        time.sleep(0.05)
    yield joy
    env.outcome = None


def drive(env, policy, pad, script):
    """Steps through ``script``: (buttons, axes) pushed before each step; None = the pad says nothing."""
    observation, _ = env.reset(seed=1)
    state, out = policy.initial_state(1), []
    for entry in script:
        if entry is not None:
            pad.push(*entry[0], axes=entry[1])
            time.sleep(0.01)
        output, state = policy.act(observation, state)
        observation, *rest = env.step(output["action"])
        out.append((output, observation, rest))
        if rest[1].item() or rest[2].item():
            break
    return out


REST, PUSHED = (0.0, 0.0, 0.0), (1.0, 0.0, 0.0)


def test_the_dead_man_button_takes_over_and_hands_back(env, pad, joy):
    script = [((), PUSHED)] * 4 + [(("deadman",), REST)] * 6 + [(("deadman",), PUSHED)] * 4 + [((), REST)] * 4
    steps = drive(env, Intervened(Up(env), joy), pad, script)
    taken = [bool(output["intervention"]) for output, _, _ in steps]
    assert not any(taken[:3]) and all(taken[6:13]) and not taken[-1]
    still = steps[7][0]["action"][0]
    assert (still[:3] == 0).all()  # taken over with the sticks at rest: nothing moves
    moved = steps[12][0]["action"][0]
    assert moved[0] == 1 and (moved[1:3] == 0).all()
    assert steps[7][0]["base_action"][0, 0, 2] == 0.5  # what the policy would have done is still known


def test_axes_have_a_dead_zone_a_direction_and_a_speed(env, pad, joy):
    joy.speed = 0.5
    steps = drive(env, Intervened(Up(env), joy), pad, [(("deadman",), (0.05, 1.0, -1.0))] * 4)
    assert torch.allclose(steps[-1][0]["action"][0, :3], torch.tensor([0.0, -0.5, -0.5]))


def test_the_gripper_keeps_what_it_does_until_told(env, pad, joy):
    script = [(("deadman",), REST)] * 3 + [(("deadman", "shut"), REST)] * 2 + [(("deadman",), REST)] * 3
    steps = drive(env, Intervened(Up(env), joy), pad, script)
    grips = [float(output["action"][0, -1]) for output, _, _ in steps]
    assert grips[2] == 1.0 and grips[-1] == -1.0
    assert steps[-1][1][STATE][0, -1] < 0.035


@pytest.mark.parametrize("outcome", ["success", "failure"])
def test_a_button_ends_the_episode(env, pad, joy, outcome):
    steps = drive(
        env, Intervened(Up(env), joy), pad, [((), REST)] * 3 + [((outcome,), REST)] + [((), REST)] * 4
    )
    reward, terminated, truncated, info = steps[-1][2]
    assert terminated.item() and not truncated.item() and len(steps) < 8
    assert info["success"].item() == (outcome == "success") == bool(reward.item())
    assert (
        len(drive(env, Intervened(Up(env), joy), pad, [((), REST)] * 3)) == 3
    )  # and says nothing about the next one


def test_a_button_throws_the_episode_away(env, pad, joy):
    steps = drive(
        env, Intervened(Up(env), joy), pad, [((), REST)] * 3 + [(("discard",), REST)] + [((), REST)] * 4
    )
    _, terminated, truncated, info = steps[-1][2]
    assert truncated.item() and not terminated.item() and len(steps) < 8
    assert info["discarded"].item() and not info["success"].item()


def test_a_pad_that_vanishes_while_it_steers_keeps_the_policy_away(env, pad, joy):
    script = [(("deadman",), PUSHED)] * 3 + [None] * 12 + [(("deadman",), REST)] + [((), REST)] * 3
    steps = drive(env, Intervened(Up(env), joy), pad, script)
    gone = [output for output, _, _ in steps[11:15]]
    assert all(output["intervention"].item() and (output["action"][0, :3] == 0).all() for output in gone)
    assert not steps[-1][0]["intervention"].item()  # released: the policy's turn again


def test_a_pad_that_vanishes_between_episodes_keeps_the_policy_away_too(env, pad, joy):
    for _ in range(5):
        pad.push("deadman", axes=PUSHED)
        time.sleep(0.05)
    time.sleep(0.5)
    script = [None] * 4 + [(("deadman",), PUSHED)] * 3 + [(("deadman",), REST)] + [((), REST)] * 3
    steps = drive(env, Intervened(Up(env), joy), pad, script)
    gone = [output for output, _, _ in steps[:4]]
    assert all(output["intervention"].item() and (output["action"][0, :3] == 0).all() for output in gone)
    assert any((output["action"][0, :3] != 0).any() for output, _, _ in steps[5:8])  # heard again, it steers
    assert not steps[-1][0]["intervention"].item()


def test_the_stop_button_latches(env, pad, joy, reset):
    with pytest.raises(RobotFault, match="stop button"):
        drive(env, Intervened(Up(env), joy), pad, [((), REST)] * 2 + [(("stop",), REST)] + [((), REST)] * 30)
    reset(env.link)
    time.sleep(0.3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"axes": [1, 2]}, r"2 entries, sim_arm needs 3 \(dx, dy, dz\)"),
        ({"open": 4}, "teleop.open and teleop.deadman are both button 4"),
        ({"speed": 2.0}, "teleop.speed"),
    ],
)
def test_settings_that_do_not_fit_are_named(env, change, words):
    with pytest.raises(UserError, match=words):
        Joy(env, **(SETTINGS | change))


def test_chunks_are_refused(env, joy):
    policy = Up(env)
    policy.spec = replace(policy.spec, chunk_length=4)
    with pytest.raises(UserError, match="policy.horizon"):
        Intervened(policy, joy)
    assert Intervened(OpenLoop(policy, 2), joy).spec.chunk_length == 0
