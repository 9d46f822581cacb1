"""A simulator on a clock: the same episodes, each step as long as asked."""

import time

import pytest
import torch

from sim.vector import make
from vla_rl.errors import UserError
from vla_rl.keys import STATE

SETTINGS = {"inner": "sim.metaworld:MetaWorldEnv", "cameras": [], "max_episode_steps": 20}


def test_it_plays_what_the_inner_one_plays_and_takes_its_time():
    waiting = make("sim.waiting:WaitingEnv", "reach-v3", 1, 0, period_s=0.05, **SETTINGS)
    plain = make("sim.metaworld:MetaWorldEnv", "reach-v3", 1, 0, cameras=[], max_episode_steps=20)
    assert waiting.env_spec == plain.env_spec
    for env in (waiting, plain):
        env.reset(seed=[3])
    begun = time.monotonic()
    seen = [waiting.step(torch.full((1, 4), 0.1))[0][STATE] for _ in range(6)]
    assert time.monotonic() - begun >= 0.25
    assert all(torch.equal(s, plain.step(torch.full((1, 4), 0.1))[0][STATE]) for s in seen)
    waiting.close()
    plain.close()


def test_a_period_in_the_past_is_refused():
    with pytest.raises(UserError, match="env.period_s=-1"):
        make("sim.waiting:WaitingEnv", "reach-v3", 1, 0, period_s=-1, **SETTINGS)
