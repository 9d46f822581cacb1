"""Planning beside acting: the clock is never held up, and every action belongs to the step at which it is executed."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from vla_rl.errors import UserError
from vla_rl.policies.asynchronous import Asynchronous
from vla_rl.policies.base import PolicySpec

LENGTH = 10


class Clockwork:
    """A chunked base that takes its time; action t of a chunk planned at step s is (s + t, s)."""

    spec = PolicySpec(2, chunk_length=LENGTH)

    def __init__(self, seconds=0.0):
        self.seconds, self.calls = seconds, 0

    def initial_state(self, batch_size):
        return TensorDict({"calls": torch.zeros(batch_size)}, [batch_size])

    def needs_images(self, state):
        return torch.zeros(len(state["calls"]), dtype=torch.bool)

    def act(self, observation, state, *, deterministic=False):
        time.sleep(self.seconds)
        self.calls += 1
        start = observation["observation.state"][:, :1]
        chunk = torch.stack([start + torch.arange(LENGTH), start.expand(-1, LENGTH)], -1)
        return TensorDict({"action": chunk}, [1]), TensorDict({"calls": state["calls"] + 1}, [1])


def play(policy, steps, period=0.0, start=0):
    state, out = policy.initial_state(1), []
    for step in range(start, start + steps):
        began = time.monotonic()
        output, state = policy.act({"observation.state": torch.tensor([[float(step - start)]])}, state)
        out.append((output["action"][0].tolist(), time.monotonic() - began))
        time.sleep(max(0.0, period - (time.monotonic() - began)))
    return out


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.floats(0, 0.004))
def test_every_action_is_that_of_its_own_step(lead, horizon, seconds):
    policy = Asynchronous(Clockwork(seconds), horizon, lead)
    for step, (action, _) in enumerate(play(policy, 40, 0.001)):
        assert action[0] == step
        assert step - action[1] < LENGTH
    policy.close()


def test_a_slow_base_does_not_hold_up_the_clock():
    policy = Asynchronous(Clockwork(0.06))
    steps = play(policy, 60, 0.02)
    assert (
        sum(seconds > 0.03 for _, seconds in steps[1:]) <= 2
    )  # the first one, and until planning has been timed
    assert policy.lead >= 3 and policy.base.calls >= 5
    assert max(step - action[1] for step, (action, _) in enumerate(steps)) <= LENGTH - 1
    policy.close()


def test_a_base_slower_than_its_chunk_is_waited_for():
    policy = Asynchronous(Clockwork(0.1))
    steps = play(policy, 30, 0.001)
    assert policy.waits > 0
    assert [action[0] for action, _ in steps] == list(range(30))
    policy.close()


def test_a_plan_of_another_episode_is_not_used():
    policy = Asynchronous(Clockwork(0.02), horizon=3, lead=3)
    play(policy, 5)  # a plan is under way when it ends
    assert [action for action, _ in play(policy, 2)] == [[0, 0], [1, 0]]
    policy.close()


def test_an_error_while_planning_is_not_lost():
    class Broken(Clockwork):
        def act(self, observation, state, *, deterministic=False):
            if self.calls:
                raise RuntimeError("out of memory")
            return super().act(observation, state)

    policy = Asynchronous(Broken(), horizon=4, lead=2)
    with pytest.raises(RuntimeError, match="out of memory"):
        play(policy, 20, 0.002)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"horizon": 10}, "at most 9"),
        ({"lead": 10}, "policy.lead=10"),
        ({"horizon": 6, "lead": 5}, "at most 5"),
    ],
)
def test_settings_without_time_to_plan_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        Asynchronous(Clockwork(), **settings)
    with pytest.raises(UserError, match="one robot"):
        Asynchronous(Clockwork()).initial_state(2)
