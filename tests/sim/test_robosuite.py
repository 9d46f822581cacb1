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


def test_the_lean_step_is_the_stock_step(lift):
    ours, stock = [], []
    lift.reset(1)
    for action in smooth_actions(40):
        ours.append(lift.step(action)[0][STATE])
    lift.reset(1)
    for action in smooth_actions(40):
        lift.env.step(action)
        lift.env.sim.forward()  # stock positions lag one physics step (2 ms) behind
        stock.append(lift._observe()[STATE])
    np.testing.assert_allclose(ours, stock, atol=1e-4)


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
