"""When an episode ends: at its success, some steps later, or at the time limit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.base import Ending
from sim.experts.metaworld import MetaWorldExpert
from sim.vector import make
from vla_rl.errors import UserError


@given(st.lists(st.booleans(), min_size=12, max_size=12), st.one_of(st.none(), st.integers(0, 5)))
def test_rewarded_once_and_over_when_it_says(successes, after):
    ending, total, first = Ending(10, after), 0.0, None
    for step, success in enumerate(successes, 1):
        reward, terminated, truncated, succeeded = ending.step(success)
        first = step if success and first is None else first
        total += reward
        assert succeeded == (first is not None) and total == float(succeeded)
        assert terminated == (after is not None and first is not None and step >= first + after)
        assert truncated == (step >= 10 and not terminated)
        if terminated or truncated:
            break
    ending.begin()
    assert ending.step(True)[0] == 1.0


@pytest.mark.parametrize("after", [0, 5, None])
def test_an_episode_goes_on_after_its_success(after):
    settings = {"max_episode_steps": 100, "cameras": [], "after_success": after}
    env = make("sim.metaworld:MetaWorldEnv", ["drawer-close-v3"], 1, 0, **settings)
    try:
        expert = MetaWorldExpert(env)
        observation, _ = env.reset(seed=3)
        state, rewarded, over, steps = expert.initial_state(1), [], False, 0
        while not over:
            output, state = expert.act(observation, state, deterministic=True)
            observation, reward, terminated, truncated, info = env.step(output["action"])
            steps += 1
            rewarded += [steps] * int(reward.item())
            assert info["success"].item() == bool(rewarded)
            over = bool(terminated | truncated)
        assert len(rewarded) == 1 and rewarded[0] < 90
        assert steps == (100 if after is None else rewarded[0] + after)
        assert terminated.item() == (after is not None)
    finally:
        env.close()


def test_a_negative_count_is_refused():
    with pytest.raises(UserError, match="env.after_success=-1: 0 or more"):
        Ending(10, -1)
