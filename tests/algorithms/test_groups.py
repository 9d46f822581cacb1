"""Episodes of one scene are compared with one another: numbers by hand, scenes that agree, learning on the toy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from toy import SPEC, Loop, PointMass, success_rate, train
from toy_tokens import ToyTokens

from vla_rl.algorithms.factory import token_ppo
from vla_rl.algorithms.groups import Groups
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE
from vla_rl.policies.open_loop import OpenLoop

SMALL = {"epochs": 2, "batch_size": 64, "hidden": [16], "observation_keys": [STATE, ENV_STATE]}


def frame(rows, reward=0.0, over=False, final=False):
    count = len(rows)
    flags = torch.zeros(count, dtype=torch.bool)
    parts = {
        "reward": torch.full((count,), float(reward)),
        "terminated": flags | (over and reward > 0),
        "truncated": flags | (over and reward == 0),
        "final": flags | final,
    }
    return TensorDict(parts, [count]), torch.tensor(rows)


def play(groups, row, won, cut=False):
    """One episode of ``row``."""
    settled = groups.observe(*frame([row]))
    settled += groups.observe(*frame([row], float(won), over=not cut))
    return settled + groups.observe(*frame([row], final=True))


def test_advantages_are_the_published_ones():
    groups = Groups(4, 4)
    for row in range(4):
        assert groups.begin(row) == 0
    settled = [play(groups, row, won) for row, won in enumerate((True, False, False, False))]
    assert settled[:3] == [[], [], []], "known when the last of the group has ended"
    returns = np.array([1.0, 0, 0, 0])
    expected = (returns - returns.mean()) / returns.std()
    assert [(row, number) for row, number, _ in settled[3]] == [(row, 1) for row in range(4)]
    assert [advantage for *_, advantage in settled[3]] == pytest.approx(list(expected), rel=1e-5)


@pytest.mark.parametrize("won", [True, False])
def test_a_group_that_ends_alike_teaches_nothing(won):
    groups = Groups(2, 2)
    for row in range(2):
        groups.begin(row)
    assert play(groups, 0, won) == []
    assert play(groups, 1, won) == [(0, 1, None), (1, 1, None)]
    assert (groups.seen, groups.mixed) == (1, 0)


def test_an_episode_that_was_cut_is_compared_with_nothing():
    groups = Groups(2, 2)
    for row in range(2):
        groups.begin(row)
    play(groups, 0, True)
    assert play(groups, 1, False, cut=True) == [(0, 1, None), (1, 1, None)]
    assert groups.seen == 0


@given(st.lists(st.integers(0, 5), min_size=20, max_size=60), st.sampled_from([2, 3]))
def test_rows_of_a_group_play_the_same_scenes_and_no_two_groups_do(order, size):
    """Whoever begins when."""
    groups = Groups(6, size)
    scenes = {row: [] for row in range(6)}
    for row in order:
        scenes[row].append(groups.begin(row))
    for row in range(6):
        for other in range(6):
            pairs = list(zip(scenes[row], scenes[other], strict=False))
            if groups.group[row] == groups.group[other]:
                assert all(a == b for a, b in pairs)
            else:
                assert not set(scenes[row]) & set(scenes[other])


def test_rows_of_one_task_are_put_together():
    groups = Groups(6, 2)
    groups.arrange(["a", "b", "c", "a", "b", "c"])
    assert groups.group == [0, 1, 2, 0, 1, 2]
    with pytest.raises(UserError, match=r"algorithm.group=2: 3 rows of a do not divide"):
        groups.arrange(["a", "a", "a", "b", "b", "b"])
    with pytest.raises(UserError, match="algorithm.group=1"):
        Groups(4, 1)
    with pytest.raises(UserError, match="4 rows do not divide"):
        Groups(4, 3)


class Scenes(PointMass):
    """Every row's episodes begin where ``scene`` says."""

    scene = None

    def reset(self, mask):
        super().reset(mask)
        for row in mask.nonzero().flatten().tolist():
            if self.scene is not None:
                generator = torch.Generator().manual_seed(self.scene(0, row))
                self.position[row] = torch.rand(2, generator=generator) * 0.4 - 1
                self.goal[row] = torch.rand(2, generator=generator) * 1.2 - 0.2


@pytest.fixture(scope="module")
def tokens():
    return ToyTokens()


def begun(tokens, **settings):
    algorithm = token_ppo(OpenLoop(tokens, 4), SPEC, 32, **(SMALL | settings))
    env = Scenes(32, 1)
    env.scene = lambda _, row: algorithm.groups.begin(row)
    env.reset(torch.ones(32, dtype=torch.bool))
    return algorithm, Loop(env, algorithm.policy, algorithm.observe)


@pytest.mark.learning
def test_learns_without_a_critic(tokens):
    torch.manual_seed(0)
    algorithm, loop = begun(tokens, group=8, decisions=400, epochs=4, batch_size=200, actor_lr=3e-4)
    before = success_rate(algorithm.eval_policy)
    critic = [p.clone() for p in algorithm.critic.parameters()]
    metrics = train(algorithm, 60_000, loop)
    after = success_rate(algorithm.eval_policy)
    assert after > before + 0.2, (before, after)
    assert all(torch.equal(a, b) for a, b in zip(critic, algorithm.critic.parameters(), strict=True))
    assert 0 < metrics[-1]["mixed_groups"] < 1


def test_an_iteration_has_whole_groups_only(tokens):
    algorithm, loop = begun(tokens, group=4, decisions=100)
    while not algorithm.ready:
        loop.step()
    before = len(algorithm.decisions)
    algorithm.update()
    batch = algorithm.batch
    assert batch is not None
    assert len(batch) >= 100 and len(algorithm.decisions) == before - len(batch)
    assert torch.isfinite(batch["advantage"]).all() and batch["advantage"].abs().max() > 0
    assert len(algorithm.decisions) < before, "groups under way wait"


def test_resume_is_bit_exact(tokens, tmp_path):
    def fresh():
        torch.manual_seed(3)
        return begun(tokens, group=4, decisions=60)

    algorithm, loop = fresh()
    for _ in range(120):
        loop.step()
        while algorithm.updates_due():
            algorithm.update()
    algorithm.decisions._open.clear()
    algorithm.save(tmp_path / "saved")
    other, _ = fresh()
    other.load(tmp_path / "saved")
    assert other.groups.state() == algorithm.groups.state()
    assert other.decisions.settled == algorithm.decisions.settled
    mine, theirs = algorithm.decisions.over(), other.decisions.over()
    assert mine is not None and theirs is not None
    assert torch.equal(mine["number"], theirs["number"])
    torch.testing.assert_close(mine["advantage"], theirs["advantage"], rtol=0, atol=0, equal_nan=True)
