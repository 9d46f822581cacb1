"""One name for every simulator's expert."""

import pytest

from sim.experts import expert
from sim.vector import make
from vla_rl.checks import check_policy
from vla_rl.errors import UserError


def test_expert_is_found_by_task():
    env = make("sim.metaworld:MetaWorldEnv", ["reach-v3", "push-v3"], 2, 0, cameras=[])
    found = expert(env, noise=0.1)
    assert type(found).__name__ == "MetaWorldExpert" and found.noise == 0.1
    check_policy(expert(env), env.env_spec)
    env = make("sim.robosuite:RobosuiteEnv", "Lift", 1, 0, cameras=[])
    found = expert(env, noise=0.1)
    assert type(found).__name__ == "RobosuiteExpert"
    check_policy(expert(env), env.env_spec)


def test_no_expert_is_said():
    env = make("sim.gymnasium:GymnasiumEnv", "Pendulum-v1", 1, 0, image_size=0)
    with pytest.raises(UserError, match="no scripted expert for Pendulum-v1"):
        expert(env)
