"""Any gymnasium environment by id: success rules and refusals."""

import gymnasium as gym
import numpy as np
import pytest

from sim.gymnasium import GymnasiumEnv
from vla_rl.errors import UserError
from vla_rl.keys import STATE


class Line(gym.Env):
    """A point on a line that ends its own episode past +1 (reward 1) or -1 (reward -1); cannot render."""

    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2, 1), np.float32)
    info: dict = {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = float(self.np_random.uniform(-0.1, 0.1))
        return np.full((2, 1), self.x, np.float32), {}

    def step(self, action):
        self.x += float(action[0])
        over = abs(self.x) > 1
        info = {"reached": self.x > 0.5} if self.informs else {}
        return np.full((2, 1), self.x, np.float32), float(np.sign(self.x) * over), over, False, info

    def __init__(self, render_mode=None, informs=False):
        self.informs = informs


gym.register("Line-v0", Line, max_episode_steps=7)


class Unbounded(Line):
    action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)


gym.register("Unbounded-v0", Unbounded)


def test_observation_is_flattened_and_registered_limit_kept():
    env = GymnasiumEnv("Line-v0", image_size=0)
    assert env.spec.state_dim == 2 and env.spec.max_episode_steps == 7 and env.spec.tasks == ("solve Line",)
    assert env.reset(0)[0][STATE].shape == (2,) and env.look() == {}
    for step in range(7):
        assert env.step(np.zeros(1))[2:] == (False, step == 6, False)


@pytest.mark.parametrize("rule, success", [({}, False), ({"success_on_termination": True}, True)])
def test_termination_counts_as_success_when_asked(rule, success):
    env = GymnasiumEnv("Line-v0", image_size=0, task="go right", **rule)
    assert env.reset(0)[1] == "go right"
    env.step(np.array([5.0]))  # clipped to 1
    assert abs(env.env.x) < 1.2
    assert env.step(np.array([1.0]))[1:] == (float(success), True, False, success)
    env.reset(0)
    env.step(-np.ones(1))
    assert env.step(-np.ones(1))[1:] == (0.0, True, False, False), (
        "a termination with negative reward is a failure"
    )


def test_success_from_info_and_from_reward():
    env = GymnasiumEnv("Line-v0", image_size=0, success_key="reached", env_kwargs={"informs": True})
    env.reset(0)
    assert env.step(np.array([0.1]))[4] is False and env.step(np.array([0.8]))[1:] == (1.0, True, False, True)
    env = GymnasiumEnv("Line-v0", image_size=0, success_reward=0.5)
    env.reset(0)
    env.step(np.ones(1))
    assert env.step(np.ones(1))[4] is True
    env = GymnasiumEnv("Line-v0", image_size=0, success_key="reached")
    env.reset(0)
    with pytest.raises(UserError, match="env.success_key=reached: info of Line-v0 has nothing"):
        env.step(np.ones(1))


@pytest.mark.parametrize(
    "id, settings, words",
    [
        ("Pendulm-v1", {}, "unknown gymnasium environment Pendulm-v1: did you mean Pendulum-v1"),
        ("CartPole-v1", {}, "CartPole-v1 has Discrete actions"),
        ("Unbounded-v0", {"image_size": 0}, "unbounded actions"),
        ("Line-v0", {}, "Line-v0 cannot render to pixels: set env.image_size=0"),
        ("Line-v0", {"image_size": 0, "env_kwargs": {"lenght": 3}}, "lenght.*see env.env_kwargs"),
    ],
)
def test_refusals(id, settings, words):
    with pytest.raises(UserError, match=words):
        GymnasiumEnv(id, **settings)
