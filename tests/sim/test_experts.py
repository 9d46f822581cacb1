"""One name for every simulator's expert."""

import pytest
import torch

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


@pytest.mark.parametrize(
    ("adapter", "id", "first"),
    [
        ("sim.metaworld:MetaWorldEnv", "reach-v3", 0),
        ("sim.maniskill:ManiSkillEnv", "PushCube-v1", 9),
        ("sim.robosuite:RobosuiteEnv", "Lift", 0),
    ],
)
def test_one_that_misses_goes_beside_in_another_way_every_episode(adapter, id, first):
    """Its hand ends off where the true expert's does; an episode is the same in every row."""
    env = make(adapter, id, 2, 0, cameras=[], max_episode_steps=60)

    def ends(seeds, miss):
        torch.manual_seed(0)
        policy = expert(env, miss=miss)
        seen, _ = env.reset(seed=seeds)
        state = policy.initial_state(2)
        for _ in range(40):
            output, state = policy.act(seen, state)
            seen, *_, info = env.step(output["action"])
            if info["success"].any():
                break
        return seen["observation.state"][:, first : first + 3]

    good, bad, swapped = ends([3, 4], 0.0), ends([3, 4], 0.1), ends([4, 3], 0.1)
    assert (good - bad).norm(dim=1).min() > 0.02
    assert torch.allclose(bad, swapped.flip(0), atol=0.02)
    with pytest.raises(UserError, match="miss=-0.1"):
        expert(env, miss=-0.1)
    env.close()
