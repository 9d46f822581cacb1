"""Meta-World: fifty tasks and experts, episodes that depend on their seed alone, the goal in view."""

import warnings

import numpy as np
import pytest
import torch

from sim.experts.metaworld import MetaWorldExpert
from sim.metaworld import INSTRUCTIONS, MetaWorldEnv
from sim.vector import make
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE
from vla_rl.policies.base import check_compatible
from vla_rl.rollout.collector import Collector

ADAPTER = "sim.metaworld:MetaWorldEnv"
SIX = ["reach-v3", "drawer-open-v3", "button-press-topdown-v3", "door-open-v3", "window-close-v3", "push-v3"]


def test_every_task_has_a_sentence_of_its_own_and_an_expert():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert set(INSTRUCTIONS) == set(ALL_V3_ENVIRONMENTS) and len(set(INSTRUCTIONS.values())) == 50
    env = make(ADAPTER, "reach-v3", 1, 0)
    env._own = list(INSTRUCTIONS)
    expert = MetaWorldExpert(env)
    observation, _ = env.reset(seed=0)
    state = observation[ENV_STATE].expand(50, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        action = expert.command({ENV_STATE: state, "task": list(INSTRUCTIONS.values())})
    assert action.shape == (50, 4) and torch.isfinite(action).all()
    assert expert.command({ENV_STATE: state[:0], "task": []}).shape == (0, 4)
    env.close()


def test_experts_succeed_on_a_batch_of_several_tasks():
    env = make(ADAPTER, SIX, 6, 0, cameras=[])
    expert = MetaWorldExpert(env)
    check_compatible(expert.spec, env.env_spec)
    ends = []
    collector = Collector(env, expert, lambda number, row: number, on_episode=ends.append)
    collector.begin()
    for _ in range(115):
        collector.step()
    assert {e.task_id for e in ends} == set(SIX) and all(e.success for e in ends)
    env.close()


def test_noise_disturbs_and_is_drawn_from_torch():
    env = make(ADAPTER, "reach-v3", 3, 0, cameras=[])
    expert = MetaWorldExpert(env, noise=0.2)
    observation, _ = env.reset(seed=0)
    state = expert.initial_state(3)

    def act(**how):
        torch.manual_seed(1)
        return expert.act(observation, state, **how)[0]["action"]

    assert torch.equal(act(), act())
    calm = act(deterministic=True)
    assert torch.equal(calm, expert.command(observation)) and not torch.equal(calm, act())
    assert torch.equal(calm[:, 3], act()[:, 3]), "the gripper is left alone"
    env.close()


@pytest.mark.parametrize("id", ["reach-v3", "door-open-v3", "stick-pull-v3"])
def test_an_episode_is_a_function_of_its_seed(id):
    env, rng = MetaWorldEnv(id), np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (25, 4))

    def play(env, seed):
        first, _ = env.reset(seed)
        return np.stack([first[ENV_STATE]] + [env.step(a)[0][ENV_STATE] for a in actions])

    once = play(env, 3)
    other = play(env, 4)
    np.testing.assert_array_equal(play(env, 3), once)
    np.testing.assert_array_equal(play(MetaWorldEnv(id), 3), once)
    assert not np.array_equal(once[0], other[0])
    env.close()


def test_goal_is_visible_and_state_is_proprioception():
    env = MetaWorldEnv("reach-v3")
    observation, task = env.reset(0)
    np.testing.assert_allclose(observation[ENV_STATE][-3:], env.env._target_pos, atol=1e-6)
    np.testing.assert_array_equal(observation[STATE], observation[ENV_STATE][:4])
    assert task == "move the gripper to the goal"


def test_actions_are_clipped_to_the_box():
    env = MetaWorldEnv("reach-v3")
    after = []
    for scale in (1.0, 50.0):
        env.reset(0)
        after.append(env.step(scale * np.ones(4))[0][ENV_STATE])
    np.testing.assert_array_equal(*after)


def test_lean_pictures_are_right_side_up():
    env = MetaWorldEnv("reach-v3", image_size=64, cameras=["corner2", "topview"])
    env.reset(0)
    pictures = env.look()
    corner = pictures["observation.images.corner2"].astype(int)
    assert corner.shape == (3, 64, 64) and pictures["observation.images.corner2"].flags.c_contiguous
    grey = np.abs(corner - corner.mean(0)).max(0) < 12
    assert grey[:10].mean() > grey[-10:].mean(), "the grey sky is above, the brown table below"
    env.close()


def test_cameras_that_were_moved_see_the_scene_from_there():
    pictures = []
    for shift in ((0.0, 0.0, 0.0), (0.0, 0.0, 0.2)):
        env = MetaWorldEnv("reach-v3", image_size=64, cameras=["topview"], camera_shift=shift)
        env.reset(0)
        pictures.append(env.look()["observation.images.topview"].astype(int))
        env.close()
    here, higher = (np.abs(p - p[:, :1, :1]).max(0) > 40 for p in pictures)
    assert 0 < higher.sum() != here.sum() and np.abs(pictures[0] - pictures[1]).mean() > 3
    with pytest.raises(UserError, match=r"env\.camera_shift=.* three numbers"):
        MetaWorldEnv("reach-v3", camera_shift=(0.1,))


def test_unknown_id_is_named_with_the_nearest():
    with pytest.raises(
        UserError, match="unknown Meta-World environment drawer-opn-v3: did you mean drawer-open-v3"
    ):
        MetaWorldEnv("drawer-opn-v3")


def test_expert_refuses_another_environment():
    env = make("sim.gymnasium:GymnasiumEnv", "Pendulum-v1", 1, 0, image_size=0)
    with pytest.raises(UserError, match="no Meta-World expert for Pendulum-v1"):
        MetaWorldExpert(env)
