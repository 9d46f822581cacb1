"""The keyboard: held keys steer, hands off and the policy goes on."""

import os
import time

import pytest
from test_joy import Up

from real.robot_env import RobotFault
from real.teleop.keyboard import Keyboard
from vla_rl.errors import UserError
from vla_rl.policies.intervened import Intervened


@pytest.fixture
def keys(env):
    hand, terminal = os.openpty()
    keyboard = Keyboard(env, speed=0.5, hold=0.4, terminal=terminal)
    yield hand, keyboard
    keyboard.close()
    env.outcome = None
    os.close(hand)


def drive(env, keys, script):
    """Hits the keys of ``script`` before each step; an empty string hits none."""
    hand, keyboard = keys
    observation, _ = env.reset(seed=1)
    policy = Intervened(Up(env), keyboard)
    state, steps = policy.initial_state(1), []
    for hit in script:
        if hit:
            os.write(hand, hit.encode())
            time.sleep(0.02)
        output, state = policy.act(observation, state)
        observation, *rest = env.step(output["action"])
        steps.append((output, rest))
        if rest[1].item() or rest[2].item():
            break
    return steps


def test_keys_steer_and_hands_off_hands_back(env, keys):
    steps = drive(env, keys, ["", ""] + ["w"] * 4 + ["d"] * 4 + ["q"] * 3 + [""] * 14)
    actions = [output["action"][0].tolist() for output, _ in steps]
    taken = [output["intervention"].item() for output, _ in steps]
    assert not any(taken[:2]) and all(taken[2:12]) and not taken[-1]
    assert actions[4] == [0.5, 0.0, 0.0, 1.0] and actions[8] == [0.0, -0.5, 0.0, 1.0]
    assert actions[11] == [0.0, 0.0, 0.0, -1.0]  # a gripper's key moves nothing else
    assert actions[-1][2] == 0.5  # the policy's


@pytest.mark.parametrize(("key", "outcome"), [("\r", "success"), ("\x7f", "failure"), ("x", "discarded")])
def test_keys_end_the_episode(env, keys, key, outcome):
    steps = drive(env, keys, ["", "", key, "", "", ""])
    _, terminated, truncated, info = steps[-1][1]
    assert (
        len(steps) < 6
        and terminated.item() == (outcome != "discarded")
        and truncated.item() != terminated.item()
    )
    assert info["success"].item() == (outcome == "success")
    assert info["discarded"].item() == (outcome == "discarded")


def test_space_stops(env, keys, reset):
    with pytest.raises(RobotFault, match="stop button"):
        drive(env, keys, ["", " "] + [""] * 30)
    reset(env.link)


def test_without_a_terminal_it_says_so(env):
    reader, writer = os.pipe()
    with pytest.raises(UserError, match="needs a terminal"):
        Keyboard(env, terminal=reader)
    os.close(reader)
    os.close(writer)
