"""Rewind and guided reset on the simulated arm over DDS: the arm is back where it was, and what was undone is not data."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sensor_msgs.msg import Joy as Message
from tensordict import TensorDict

from real.motion import joints_of
from real.ros2 import Link
from real.teleop.buttons import Buttons
from vla_rl.data.dataset import load_episodes
from vla_rl.data.record import record
from vla_rl.errors import UserError
from vla_rl.keys import STATE
from vla_rl.policies.base import PolicySpec

TOLERANCE = 0.015
"""rad: 0.01 of ``real.motion.ARRIVED`` and what the arm drifts until it is read."""


class Side:
    """To one side and down, grasping; presses the rewind button before step ``at``."""

    def __init__(self, env, pad, at):
        self.spec, self.pad, self.at, self.step = PolicySpec(env.env_spec.action_dim), pad, at, 0
        self.seen = []

    def initial_state(self, batch_size):
        return TensorDict({}, [batch_size])

    def needs_images(self, state):
        return torch.zeros(state.batch_size[0], dtype=torch.bool)

    def act(self, observation, state, *, deterministic=False):
        self.seen.append(observation[STATE][0, :7].numpy().copy())
        if self.step == self.at:
            self.pad.publish(Message(buttons=[0, 1]))
            time.sleep(0.02)
        self.step += 1
        return TensorDict({"action": torch.tensor([[0.0, 0.4, -0.2, -1.0]])}, [1]), state


@pytest.fixture
def pad(env):
    link = Link("rewinder")
    topic = link.publisher("/joy", Message)
    buttons = Buttons(env, "/joy", {"deadman": 0, "rewind": 1}, rewind_seconds=0.5)
    until = time.monotonic() + 10
    while buttons.heard.newest is None and time.monotonic() < until:
        topic.publish(Message(buttons=[0, 0]))
        time.sleep(0.05)
    yield topic
    env.outcome = None
    link.close()


def test_the_arm_goes_back_along_its_path_and_the_steps_are_not_recorded(env, pad, tmp_path):
    policy = Side(env, pad, at=24)
    env.env_spec = replace(env.env_spec, max_episode_steps=30)
    try:
        record(env, policy, 1, tmp_path / "out", seed=1, cameras=(), journal=True)
    finally:
        env.env_spec = replace(env.env_spec, max_episode_steps=120)
    episode = load_episodes(tmp_path / "out")[0]
    states, seen = episode.data[STATE].numpy(), np.array(policy.seen)
    assert policy.step == 40 and episode.length == 30  # 10 steps (0.5 s) undone, and they do not count
    # The arm goes back to where step 15 set out, a moment after its observation: on the way to the next one
    ends = np.sort(seen[15:17], axis=0)
    assert (ends[0] - TOLERANCE < seen[25]).all() and (seen[25] < ends[1] + TOLERANCE).all()
    assert np.abs(seen[24] - seen[15]).max() > 5 * TOLERANCE  # it had been elsewhere
    np.testing.assert_array_equal(states[:, :7], np.concatenate([seen[:15], seen[25:]]))
    assert states[15, -1] < 0.02  # the gripper was left as it was: shut


def test_a_saved_state_is_gone_back_to_and_the_person_is_told_what_it_looked_like(env, tmp_path, monkeypatch):
    env.reset(seed=3)
    down = torch.tensor([[0.0, 0.3, -0.4, -1.0]])
    for _ in range(15):
        env.step(down)
    (state,) = env.save_states([0])
    assert state["observation.images.agentview"].shape == (3, 96, 96)
    picture = tmp_path / "000001.png"
    Image.fromarray(state["observation.images.agentview"].transpose(1, 2, 0)).save(picture)
    env.reset(seed=4)
    asked = []
    monkeypatch.setattr(env, "confirm", lambda words: asked.append((words, joints_of(env))))
    observation, _ = env.reset(seed=5, options={"start": {0: state | {"picture": str(picture)}}})
    (words, there), cube = asked[0], state["objects"][0]
    assert str(picture) in words and f"cube at ({cube[0]:.3f}" in words and len(asked) == 1
    assert np.abs(there - state["joints"]).max() < TOLERANCE
    assert np.abs(observation[STATE][0, :7].numpy() - state["joints"]).max() < TOLERANCE
    assert observation[STATE][0, -1] < 0.02 and env.seed == 3
    for _ in range(3):
        env.step(down)

    def nobody(words):
        raise EOFError

    monkeypatch.setattr(env, "confirm", nobody)
    with pytest.raises(UserError, match="nobody is there"):
        env.reset(seed=5, options={"start": {0: state}})


def test_how_far_back_is_checked(env):
    with pytest.raises(UserError, match="teleop.rewind_seconds=0"):
        Buttons(env, "/joy", {"deadman": 0}, rewind_seconds=0)
