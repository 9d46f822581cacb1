"""Guards: shaping keeps the best policy, going back and forth earns nothing, done needs agreement, an exploited critic is told."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.errors import UserError
from vla_rl.rewards.guards import Agreement, Audit, shaped


def best_policy(reward, gamma=0.9):
    """Value iteration on a line of six states; state 5 ends with a reward of 1. ``reward(s, s2)`` comes on top."""
    value = np.zeros(6)
    for _ in range(500):
        q = np.full((6, 2), -np.inf)
        for s in range(5):
            for a, move in enumerate((-1, 1)):
                s2 = min(max(s + move, 0), 5)
                q[s, a] = reward(s, s2) + (1.0 if s2 == 5 else gamma * value[s2])
        value = np.where(np.arange(6) == 5, 0.0, q.max(1))
    return q[:5].argmax(1)


@pytest.mark.parametrize("seed", range(5))
def test_potential_shaping_leaves_the_best_policy_what_it_is(seed):
    potential = np.random.default_rng(seed).uniform(0, 1, 6)  # a critic that is wrong everywhere

    def reward(kind):
        def of(s, s2):
            before, after = (torch.tensor([potential[i]]) for i in (s, s2))
            return float(shaped(kind, before, after, torch.zeros(1), torch.tensor([s2 == 5]), 0.9, 0.1))

        return of

    assert (best_policy(reward("potential")) == 1).all()


def test_unguarded_progress_is_worth_more_than_the_goal():
    """The planted exploit: rises pay, falls are free, so that the best policy goes back and forth for ever."""
    potential = [0.0, 0.5, 0.0, 0.5, 0.9, 1.0]

    def reward(kind):
        return lambda s, s2: float(
            shaped(
                kind,
                torch.tensor([potential[s]]),
                torch.tensor([potential[s2]]),
                torch.zeros(1),
                torch.tensor([s2 == 5]),
                0.9,
                0.1,
            )
        )

    assert (best_policy(reward("unguarded")) == 0).any()
    assert (best_policy(reward("potential")) == 1).all()


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=30))
def test_what_an_episode_can_earn_is_bounded(values):
    values = torch.tensor(values)
    best, total = values[:1].clone(), {"delta": 0.0, "potential": 0.0}
    over = torch.tensor([False])
    for before, after in zip(values[:-1], values[1:], strict=True):
        for kind in total:
            total[kind] += float(shaped(kind, before[None], after[None], best, over, 1.0, 0.1))
        best = torch.maximum(best, after[None])
        assert abs(float(shaped("clip", before[None], after[None], best, over, 1.0, 0.1))) <= 0.1 + 1e-6
    assert total["delta"] == pytest.approx(float(values.max() - values[0]), abs=1e-4)
    assert total["potential"] == pytest.approx(float(values[-1] - values[0]), abs=1e-4)


def test_done_needs_several_judgements_in_a_row():
    agreement, row = Agreement(2, 2), torch.tensor([0])
    said = [bool(agreement.update(row, torch.tensor([c]))) for c in (True, False, True, True)]
    assert said == [False, False, False, True]
    agreement.begin(torch.tensor([True, False]))
    assert not agreement.update(row, torch.tensor([True]))


def test_an_exploited_critic_is_told():
    audit = Audit(window=40, limit=0.5, least=10)
    for i in range(12):
        audit.ended(True, i % 4 == 0, 0.9, 0.9)
    assert "75% of the last 12 successes that the critic believed in were none" in audit.verdict()
    assert audit.metrics()["believed"] == 1.0 and audit.metrics()["true"] == 0.25


def test_a_good_critic_goes_on():
    audit = Audit(least=5)
    for i in range(20):
        audit.ended(i % 2 == 0, i % 2 == 0, 0.5, 0.5)
    assert audit.verdict() is None and audit.metrics()["false_done"] == 0.0


def test_what_a_critic_misses_is_counted():
    audit = Audit()
    for i in range(8):
        audit.ended(i % 4 == 0, i % 2 == 0, 0.5, 0.5)
    assert audit.metrics()["missed"] == 0.5 and audit.metrics()["false_done"] == 0.0
    assert Audit().metrics() == {}


def test_a_critic_that_says_the_same_to_everything_is_told():
    audit = Audit(least=5)
    for _ in range(6):
        audit.ended(False, True, 0.0, 0.001)
    assert "says the same to every picture" in audit.verdict()


def test_no_agreement_of_none():
    with pytest.raises(UserError, match="reward.agree=0 must be at least 1"):
        Agreement(1, 0)


def test_a_critic_is_trusted_while_few_of_its_successes_are_false():
    audit = Audit(window=40, limit=0.5, least=10)
    trusted = []
    for i in range(40):  # ever more of them are
        audit.ended(True, i % 10 >= i // 5, 0.9, 0.9)
        trusted.append(audit.trusts())
    assert trusted[5] and trusted[15] and not trusted[-1] and audit.verdict() is None
