"""Half speed: arm, safety node and policy follow /clock, and say so when it is not there."""

import os
import time

import pytest

from real.nodes import Nodes, safety, sim_arm
from real.robot_env import RobotEnv
from real.ros2 import Link, Ticker
from sim.experts import expert
from vla_rl.errors import UserError
from vla_rl.rollout.collector import Collector

SIMULATED = ["--ros-args", "-p", "use_sim_time:=true"]


@pytest.fixture(scope="module")
def domain():
    """Apart from the arm that other tests share."""
    before = os.environ["ROS_DOMAIN_ID"]
    os.environ["ROS_DOMAIN_ID"] = str((int(before) + 49) % 100 + 1)
    yield
    os.environ["ROS_DOMAIN_ID"] = before


def test_without_a_clock(domain):
    link = Link("waits", SIMULATED)
    with pytest.raises(UserError, match="use_sim_time is set and /clock is silent"):
        link.require([], 0.3)
    link.close()


def test_an_episode_at_half_speed(domain, tmp_path, monkeypatch):
    with Nodes(tmp_path) as nodes:
        nodes.start("sim_arm", sim_arm(speed=0.5))
        nodes.start("safety", safety("sim_arm", SIMULATED))
        env = RobotEnv("sim_arm", cameras=[], max_episode_steps=120, arguments=SIMULATED)
        collector = Collector(env, expert(env), lambda number, _: number)
        collector.begin()
        simulated, began, done = env.link.now(), time.monotonic(), []
        while not done:
            done = collector.step(deterministic=True)
        share = (env.link.now() - simulated) / (time.monotonic() - began)
        assert done[0].success
        assert 0.3 < share < 0.6, "the run follows the simulation's clock"
        nodes.kill("sim_arm")
        monkeypatch.setattr("real.ros2.STILL", 0.5)
        with pytest.raises(UserError, match="/clock has stood still"):
            ticker = Ticker(env.link, 0.05)
            for _ in range(3):
                ticker.wait()
        env.close()
