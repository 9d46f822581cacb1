"""robosuite: the lean step against the stock one, seeding, experts."""

import numpy as np
import pytest
import torch

from sim.experts.robosuite import RobosuiteExpert
from sim.robosuite import RobosuiteEnv
from sim.vector import make
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE
from vla_rl.rollout.collector import Collector

ADAPTER = "sim.robosuite:RobosuiteEnv"


@pytest.fixture(scope="module")
def lift():
    env = RobosuiteEnv("Lift", image_size=48)
    yield env
    env.close()


def smooth_actions(count):
    walk = np.cumsum(np.random.default_rng(0).normal(size=(count, 7)) * 0.2, axis=0)
    return np.clip(walk, -1, 1)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_lean_step_is_the_stock_step(lift, seed):
    def states(step):
        lift.reset(seed)
        for action in np.random.default_rng(seed).uniform(-1, 1, (1000, 7)):
            step(action)
            yield np.concatenate([lift.data.qpos, lift.data.qvel])

    ours, stock = list(states(lift.step)), list(states(lift.env.step))
    np.testing.assert_allclose(ours, stock, rtol=0, atol=1e-9)


def test_observations_are_the_simulators_own(lift):
    lift.reset(3)
    for action in smooth_actions(20):
        ours = lift.step(action)[0]
    stock = lift.env._get_observations(force_update=True)
    own = np.concatenate([stock[f"robot0_{k}"] for k in ("eef_pos", "eef_quat", "gripper_qpos")])
    np.testing.assert_array_equal(ours[STATE], own.astype(np.float32))
    np.testing.assert_array_equal(ours[ENV_STATE], stock["object-state"].astype(np.float32))


def test_an_episode_is_a_function_of_its_seed_and_numpy_is_left_alone(lift):
    np.random.seed(0)
    expected = np.random.rand(3)
    np.random.seed(0)

    def play(env, seed):
        first, _ = env.reset(seed)
        steps = [env.step(a)[0] for a in smooth_actions(8)]
        return np.stack([np.concatenate([o[STATE], o[ENV_STATE]]) for o in [first, *steps]])

    once, other = play(lift, 3), play(lift, 4)
    np.testing.assert_array_equal(play(lift, 3), once)
    fresh = RobosuiteEnv("Lift", cameras=[])
    np.testing.assert_array_equal(play(fresh, 3), once)
    assert not np.array_equal(once[0], other[0])
    np.testing.assert_array_equal(np.random.rand(3), expected)


def test_picture_is_right_side_up(lift):
    lift.reset(0)
    picture = lift.look()["observation.images.agentview"].astype(int)
    assert picture.shape == (3, 48, 48)
    assert picture[:, 25:].mean() > picture[:, :8].mean() + 20, "the white table fills the lower part"


@pytest.mark.parametrize("id, steps", [("Lift", 45), ("Can", 150)])
def test_experts_succeed(id, steps):
    env = make(ADAPTER, id, 4, 0, cameras=[])
    ends = []
    collector = Collector(env, RobosuiteExpert(env), lambda number, row: number, on_episode=ends.append)
    collector.begin()
    while collector.steps < 4 * steps and len(ends) < 4:
        collector.step()
    assert len(ends) >= 4 and all(e.success for e in ends)
    env.close()


def test_noise_leaves_rotation_and_gripper_alone():
    env = make(ADAPTER, "Lift", 1, 0, cameras=[])
    expert = RobosuiteExpert(env, noise=0.3)
    observation, _ = env.reset(seed=0)
    action = expert.act(observation, expert.initial_state(1))[0]["action"]
    calm = expert.act(observation, expert.initial_state(1), deterministic=True)[0]["action"]
    assert not torch.equal(action[:, :3], calm[:, :3]) and torch.equal(action[:, 3:], calm[:, 3:])


def test_unknown_id_and_missing_expert_are_named():
    with pytest.raises(UserError, match="unknown robosuite environment Lft: did you mean Lift"):
        RobosuiteEnv("Lft")
    env = make(ADAPTER, "Door", 1, 0, cameras=[])
    with pytest.raises(UserError, match="no scripted expert for Door: there is one for Lift, Can"):
        RobosuiteExpert(env)


def test_threads_change_nothing_but_the_time():
    def play(**settings):
        env = make(ADAPTER, "Lift", 3, 0, cameras=[], **settings)
        env.reset(seed=[1, 2, 3])
        states = [env.step(torch.full((3, 7), value))[0][STATE] for value in (0.5, -0.3, 0.1)]
        env.close()
        return torch.stack(states)

    assert torch.equal(play(num_threads=2), play())
    with pytest.raises(
        UserError, match="env.num_threads=2: at least 1, and more than that only with env.num_workers=0"
    ):
        make(ADAPTER, "Lift", 3, 1, num_threads=2)
