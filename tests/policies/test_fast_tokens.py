"""FAST words: chunks come back, nothing that is said fails to mean something, and reinforcement learning sees what was drawn."""

import math

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_rl.checks.policy import check_policy
from vla_rl.critic.model import Critic
from vla_rl.errors import UserError
from vla_rl.policies.advised import Shown
from vla_rl.policies.fast_tokens import SCALE, FastWords
from vla_rl.policies.lerobot import LeRobotPolicy
from vla_rl.policies.spoken import Spoken
from vla_rl.policies.taught import Taught


def smooth(count, steps=8, dims=3, seed=0):
    """Chunks of slow waves in -1 ... 1."""
    draw = torch.Generator().manual_seed(seed)
    phase, rate = torch.rand(2, count, 1, dims, generator=draw)
    return torch.sin(6.3 * phase + rate * torch.arange(steps)[None, :, None] * 0.4)


@pytest.fixture(scope="module")
def words():
    return FastWords.fit(smooth(400), 256)


@given(st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_a_chunk_comes_back_within_the_rounding_of_its_frequencies(words, seed):
    chunks = smooth(5, seed=seed)
    back = words.decode(words.encode(chunks))
    assert words.said(words.encode(chunks)).sum(1).max() <= words.count
    away = (back - chunks).norm(dim=1)  # the transform keeps lengths: T errors of at most half a unit
    assert (away <= 0.5 / SCALE * math.sqrt(8) + 1e-5).all()


def test_smooth_chunks_need_fewer_words_than_bins(words):
    said = words.said(words.encode(smooth(100, seed=9))).sum(1).float().mean()
    assert said < 8 * 3 / 2, said


@given(st.lists(st.integers(0, 255), min_size=0, max_size=12))
@settings(max_examples=50, deadline=None)
def test_whatever_is_said_is_an_action(words, said):
    row = torch.full((1, words.count), words.end)
    kept = [min(word, words.size - 1) for word in said][: words.count]
    row[0, : len(kept)] = torch.tensor(kept, dtype=torch.long)
    chunk = words.decode(row)
    assert chunk.shape == (1, 8, 3) and torch.isfinite(chunk).all() and chunk.abs().max() <= 1


def test_what_follows_the_end_is_filling(words):
    row = torch.tensor([[1, 2, words.end, words.end, 3]])
    assert words.said(row).tolist() == [[True, True, True, False, False]]
    assert torch.equal(words.decode(row), words.decode(torch.tensor([[1, 2, words.end]])))


def test_too_long_a_chunk_loses_its_highest_frequencies(words):
    wild = torch.rand(1, 8, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    tokens = words.encode(wild)
    assert tokens.shape[1] == words.count and tokens[0, -1] == words.end
    mean = words.decode(tokens).mean(1)
    assert (mean - wild.mean(1)).abs().max() < 0.1, "the lowest frequency is the mean, and is said first"


def test_it_is_kept_as_text(words):
    again = FastWords.loads(words.dumps())
    chunks = smooth(20, seed=3)
    assert torch.equal(again.encode(chunks), words.encode(chunks)) and again.identity == words.identity
    with pytest.raises(UserError, match="FAST vocabulary is damaged"):
        FastWords.loads(words.dumps()[:-30])


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(UserError, match="frequency values"):
        FastWords.fit(smooth(50), 8)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    words = FastWords.fit(smooth(200, steps=4), 200)
    folder = tmp_path_factory.mktemp("fast") / "policy"
    return LeRobotPolicy(tiny.tiny_token(folder, fast=words.dumps(), bins=words.size))


def test_a_policy_that_speaks_it_conforms(policy):
    check_policy(policy, tiny.env_spec(), steps=2)


def test_probabilities_are_those_of_what_was_drawn_and_filling_is_certain(policy):
    ours, seen = Spoken(policy, temperature=1.3, generator=torch.Generator().manual_seed(0)), tiny.observe(16)
    output, _ = ours.act(seen, ours.initial_state(16))
    tokens = output["tokens"]
    said = ours.words.said(tokens)
    assert 0 < said.float().mean() < 1, "some chunks end early"
    chance, entropy, logits = ours.evaluate(output["condition"], tokens)
    torch.testing.assert_close(chance, output["log_prob"], atol=1e-4, rtol=1e-4)
    assert (chance[~said] == 0).all() and (entropy[~said] == 0).all()
    assert torch.equal(output["action"], ours.actions_of_tokens(tokens))
    away = ours.from_base(logits, output["condition"], tokens)
    assert away.abs().max() < 1e-4 and (away[~said] == 0).all()


def test_only_a_teacher_of_the_same_words_teaches(policy, tmp_path):
    student = Spoken(policy)
    assert Taught(student, policy)
    other = FastWords.fit(smooth(200, steps=4, seed=8), policy.token_head.words.size - 1)
    stranger = LeRobotPolicy(tiny.tiny_token(tmp_path / "other", fast=other.dumps(), bins=other.size))
    with pytest.raises(UserError, match="FAST vocabulary|its bins"):
        Taught(student, stranger)
    with pytest.raises(UserError, match="stand for no single number"):
        Shown(
            student,
            LeRobotPolicy(
                tiny.lerobot_folder(
                    tmp_path / "act", "act", chunk_size=4, n_action_steps=4, pretrained_backbone_weights=None
                )
            ),
        )


def test_a_critic_needs_bins(policy):
    with pytest.raises(UserError, match="answers in bins"):
        Critic(policy.model, {})
