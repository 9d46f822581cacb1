"""A latched stop in the middle of an episode costs the episode; only a person ends the stop."""

import threading
import time

import pytest
import torch

from real.robot_env import RobotFault
from real.safety_node import RESET, STOP, describe
from real.session import keep_stops, stops_of
from real.stops import verdict
from vla_rl.cli import main

MOVING = torch.tensor([[0.0, 1.0, 0.0, 1.0]])


def play_until_over(env):
    for _ in range(100):
        _, reward, terminated, truncated, info = env.step(MOVING)
        if terminated or truncated:
            assert reward == 0 and not info["success"]
            return bool(terminated), bool(truncated)
    raise AssertionError("the episode went on")


@pytest.mark.parametrize("blocked", [True, False])
def test_a_stop_costs_the_episode_and_waits_for_a_person(env, monkeypatch, capfd, blocked):
    monkeypatch.setattr(env, "stop_patience", 20.0)
    env.reset(seed=1)
    env.step(MOVING)
    before = len(env.stops)
    if blocked:
        env.link.set_parameter("sim_arm", "kill_controller", True, 10.0)
    else:
        env.link.pull(STOP)
    terminated, truncated = play_until_over(env)
    assert (terminated, truncated) == (blocked, not blocked)  # failed; or cut, because a person wished it
    assert len(env.stops) == before + 1 and env.results[-1] is False
    if blocked:
        env.link.set_parameter("sim_arm", "kill_controller", False, 10.0)
    time.sleep(1.0)
    assert describe(env.safety)[0] == "stopped"  # nothing has cleared it

    def person():
        time.sleep(1.5)
        assert main(["robot", "reset"]) == 0

    began, helper = time.monotonic(), threading.Thread(target=person)
    helper.start()
    env.reset(seed=2)
    helper.join()
    assert time.monotonic() - began > 1.5
    env.step(MOVING)
    said = capfd.readouterr().out
    assert "vla-rl robot reset" in said and "reset; it was stopped" in said


def test_nobody_comes(env, monkeypatch, reset):
    monkeypatch.setattr(env, "stop_patience", 0.5)
    env.reset(seed=1)
    env.link.pull(STOP)
    play_until_over(env)
    with pytest.raises(RobotFault, match=f"(?s){RESET}.*Nobody has in 0.5 s"):
        env.reset(seed=2)
    reset(env.link)
    time.sleep(0.3)


def test_a_node_started_anew_while_stopped_waits_for_a_person(env, monkeypatch, capsys):
    """Killing the safety node and starting it again is not how a stop is ended."""
    monkeypatch.setattr(env, "stop_patience", 20.0)
    env.reset(seed=1)
    env.link.pull(STOP)
    play_until_over(env)
    monkeypatch.setattr("real.stops.describe", fresh_node(env, said := ["not started"]))
    monkeypatch.setattr("real.robot_env.describe", fresh_node(env, said))
    pulled = []
    monkeypatch.setattr(
        env.link, "pull", lambda name, *_, pull=env.link.pull: pulled.append(name) or pull(name)
    )

    def person():
        time.sleep(1.0)
        said.clear()
        assert main(["robot", "reset"]) == 0

    helper = threading.Thread(target=person)
    helper.start()
    env.reset(seed=2)
    helper.join()
    assert RESET not in pulled and not env.stopped
    assert "started anew" in capsys.readouterr().out


def fresh_node(env, said):
    """The safety node's state as one that was just started shows it, while ``said`` has an entry."""

    def described(state):
        return ("stopped", said[0]) if said and state is env.safety else describe(state)

    return described


def test_stops_of_a_session_add_up(tmp_path):
    assert stops_of(tmp_path) == []
    keep_stops(tmp_path, ["stop button"])
    keep_stops(tmp_path, [])
    keep_stops(tmp_path, ["joint_1 is 0.2 rad from its command"])
    assert stops_of(tmp_path) == ["stop button", "joint_1 is 0.2 rad from its command"]


def test_what_a_stop_makes_of_an_episode():
    assert (
        verdict("panda_joint6 is 0.15 rad from its command: blocked, or its controller is gone", "")
        == "failure"
    )
    assert verdict("stop button", "success") == verdict("other publishes /x too", "") == "cut"
    assert verdict("stop button", "discard") == "discard"
    assert verdict("stop button", "failure") == "failure"
