"""Every adapter conforms, and the conformance suite finds what it is there to find."""

import pytest
import torch

from sim.vector import make
from vla_rl.checks import check_env
from vla_rl.environment import row_mask

SMALL = {"image_size": 24, "max_episode_steps": 8}


@pytest.mark.parametrize(
    "adapter, ids, rows, workers",
    [
        ("sim.metaworld:MetaWorldEnv", ["reach-v3", "door-open-v3"], 3, 0),
        ("sim.metaworld:MetaWorldEnv", "reach-v3", 2, 1),
        ("sim.robosuite:RobosuiteEnv", "Lift", 2, 0),
        ("sim.gymnasium:GymnasiumEnv", "Reacher-v5", 2, 0),
        ("sim.gymnasium:GymnasiumEnv", "Pendulum-v1", 1, 0),
    ],
)
def test_adapters_conform(adapter, ids, rows, workers):
    check_env(lambda: make(adapter, ids, rows, workers, **SMALL))


def pendulum():
    return make("sim.gymnasium:GymnasiumEnv", "Pendulum-v1", 2, 0, **SMALL)


def ignores_seed(env):
    reset = env.reset
    env.reset = lambda *, seed=None, options=None: reset(seed=[7] * env.num_envs, options=options)


def resets_all_rows(env):
    reset = env.reset
    env.reset = lambda *, seed=None, options=None: reset(seed=seed)


def gives_float64(env):
    reset = env.reset

    def wrong(**how):
        observation, info = reset(**how)
        return {k: v.double() if torch.is_tensor(v) else v for k, v in observation.items()}, info

    env.reset = wrong


def autoresets(env):
    step = env.step

    def wrong(action):
        result = step(action)
        done = result[2] | result[3]
        if done.any():
            env.reset(seed=0, options={"reset_mask": done.numpy()})
        return result

    env.step = wrong


def looks_always_at_all(env):
    look = env.look
    env.look = lambda rows=None: look()


def never_ends(env):
    step = env.step

    def wrong(action):
        observation, reward, terminated, truncated, info = step(action)
        env._finished[:] = False
        return observation, reward, terminated, torch.zeros_like(truncated), info

    env.step = wrong


@pytest.mark.parametrize(
    "fault, words",
    [
        (ignores_seed, "another seed gives the same episode"),
        (resets_all_rows, "a partial reset changed another row"),
        (gives_float64, "is torch.float64, not torch.float32"),
        (autoresets, "stepping a finished row must raise RuntimeError"),
        (looks_always_at_all, "has shape"),
        (never_ends, "no row ended within max_episode_steps = 8"),
    ],
)
def test_faults_are_found(fault, words):
    def broken():
        env = pendulum()
        fault(env)
        return env

    with pytest.raises(AssertionError, match=words):
        check_env(broken)


def test_reset_mask_of_the_wrong_shape_is_named():
    from vla_rl.errors import UserError

    with pytest.raises(UserError, match=r"reset_mask has shape \(3,\), needs \(2,\)"):
        row_mask({"reset_mask": [True] * 3}, 2)
