"""A take-over replaces what is executed, is told apart, and leaves no stale chunk behind."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from toy import LIMIT, SPEC, BiasedBase, Loop, PointMass

from vla_rl.checks import check_policy
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE
from vla_rl.policies.intervened import Intervened, Overseer


class Script:
    """Engaged in given steps of an episode; pushes the mass."""

    state_keys = ()

    def __init__(self, engaged, push=-0.5):
        self.engaged, self.push = torch.tensor(engaged), push

    def initial_state(self, batch_size):
        return TensorDict({"step": torch.zeros(batch_size, dtype=torch.long)}, [batch_size])

    def command(self, observation, state):
        step = state["step"]
        action = torch.full((len(step), 2), self.push)
        engaged = self.engaged[step.clamp(max=len(self.engaged) - 1)]
        return action, engaged, TensorDict({"step": step + 1}, [len(step)])


class Expert(BiasedBase):
    """Knows the way."""

    def __init__(self):
        super().__init__(bias=0.0, horizon=1)


def play(policy, steps, seed=0, rows=3):
    env, state, out = PointMass(rows, seed), policy.initial_state(rows), []
    for _ in range(steps):
        observation = env.observe()
        output, state = policy.act(observation, state)
        env.step(output["action"])
        out.append((observation, output))
    return out


def test_the_executed_action_is_the_persons_and_the_base_is_still_known():
    policy = Intervened(BiasedBase(), Script([False, False, True, True, False]))
    check_policy(policy, SPEC)
    for step, (_, output) in enumerate(play(policy, 5)):
        engaged = step in (2, 3)
        assert (output["intervention"] == engaged).all()
        assert (output["action"] == -0.5).all() == engaged
        if not engaged:
            assert torch.equal(output["action"], output["base_action"][:, 0])


def test_after_the_hand_back_the_base_plans_anew():
    policy = Intervened(BiasedBase(horizon=100), Script([False] + [True] * 24 + [False], push=0.9))
    steps = play(policy, 26)  # far beyond the goal
    after, output = steps[-1]
    fresh, _ = BiasedBase().act(after, BiasedBase().initial_state(3))
    assert torch.equal(output["action"], fresh["action"])
    assert not torch.equal(output["action"], steps[0][1]["action"])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 100))
def test_without_engagement_nothing_changes(engaged, seed):
    alone = play(BiasedBase(), 6, seed)
    watched = play(Intervened(BiasedBase(), Script([False])), 6, seed)
    for (_, a), (_, b) in zip(alone, watched, strict=True):
        assert torch.equal(a["action"], b["action"])
    if any(engaged[:6]):
        taken = play(Intervened(BiasedBase(), Script(engaged)), 6, seed)
        assert any(output["intervention"].any() for _, output in taken)


def test_an_overseer_helps_after_its_patience_and_only_the_episodes_it_watches():
    env = PointMass(64, 0)
    overseer = Overseer(Expert(), SPEC, patience=10, share=0.5)
    policy = Intervened(BiasedBase(), overseer)
    assert set(policy.spec.state_keys) == {STATE, ENV_STATE}
    loop, seen = Loop(env, policy), []
    watched = loop.state["teleoperator"]["watched"].clone()
    assert 16 < watched.sum() < 48
    for step in range(LIMIT - 1):
        before = loop.state["teleoperator"]["step"].clone()
        loop.step()
        seen.append((before, loop.state["engaged"]))
        if step < 10:
            assert not loop.state["engaged"].any()
    assert any(engaged.any() for _, engaged in seen)
    alone = Loop(PointMass(64, 0), BiasedBase())
    for _ in range(LIMIT - 1):
        alone.step()
    assert sum(loop.successes) > sum(alone.successes)


@pytest.mark.parametrize(
    ("settings", "words"), [({"patience": LIMIT}, "patience=40"), ({"patience": 1, "share": 2.0}, "share")]
)
def test_an_overseer_that_could_never_help_is_refused(settings, words):
    with pytest.raises(UserError, match=words):
        Overseer(Expert(), SPEC, **settings)


def test_interventions_are_learnt_from_as_demonstrations():
    """Online frames at which somebody had taken over fill the demonstrations' half of a batch."""
    from vla_rl.algorithms.residual_td3 import ResidualTD3, ResidualTD3Config

    torch.manual_seed(0)
    settings = {"hidden": [16], "critics": 2, "warmup_steps": 160, "observation_keys": [STATE, ENV_STATE]}
    algorithm = ResidualTD3(ResidualTD3Config(**settings), BiasedBase(), SPEC, 8)
    overseer = Overseer(Expert(), SPEC, patience=30, share=0.5)
    loop = Loop(PointMass(8, 0), Intervened(algorithm.policy, overseer), algorithm.observe)
    for _ in range(120):
        loop.step()
    algorithm.update()
    batch = algorithm.experience.batch(256, 0.5, 0.0, 3, 0.97, algorithm.generator)
    assert len(batch["action"]) == 256
    assert batch["intervention"][:128].all()  # the demonstrations' half
    assert 0 < batch["intervention"][128:].float().mean() < 0.5  # and in their natural share of the rest
    assert (
        algorithm.experience.batch(256, 0.0, 0.0, 3, 0.97, algorithm.generator)["intervention"].float().mean()
        < 0.5
    )
    taken = batch["intervention"]
    expert, _ = Expert().act(batch["observation"], Expert().initial_state(256))
    assert torch.allclose(
        batch["action"][taken], expert["action"][taken]
    )  # what was executed is what is stored
