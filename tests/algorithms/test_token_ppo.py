"""Token PPO on the toy: it learns, its loss is the hand-computed one, bad settings are refused."""

import copy

import numpy as np
import pytest
import torch
from toy import SPEC, Loop, PointMass, success_rate, train
from toy_diffusion import ToyDiffusion
from toy_tokens import BINS, ToyTokens

from vla_rl.algorithms.factory import token_ppo
from vla_rl.algorithms.ppo import clipped_loss
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE
from vla_rl.policies.action_tokens import BinWords
from vla_rl.policies.open_loop import OpenLoop
from vla_rl.policies.spoken import Spoken

SMALL = {
    "decisions": 64,
    "epochs": 2,
    "batch_size": 32,
    "critic_warmup": 0,
    "critic_updates": 5,
    "hidden": [16],
    "observation_keys": [STATE, ENV_STATE],
}


@pytest.fixture(scope="module")
def tokens():
    return ToyTokens()


@pytest.mark.parametrize("drawn_steps", [pytest.param(0, marks=pytest.mark.learning), 1])
def test_learns(tokens, drawn_steps):
    torch.manual_seed(0)
    algorithm = token_ppo(
        OpenLoop(tokens, 4),
        SPEC,
        32,
        decisions=400,
        epochs=4,
        batch_size=200,
        actor_lr=3e-4,
        critic_updates=50,
        drawn_steps=drawn_steps,
        observation_keys=[STATE, ENV_STATE],
        hidden=[64, 64],
    )
    before = success_rate(algorithm.eval_policy)
    train(algorithm, 60_000, envs=32)
    after = success_rate(algorithm.eval_policy)
    assert after > before + 0.2, (before, after)


def test_untrained_it_is_the_base(tokens):
    ours, seen = Spoken(tokens), PointMass(20, 0).observe()
    output, _ = ours.act(seen, ours.initial_state(20), deterministic=True)
    theirs, _ = tokens.act(seen, tokens.initial_state(20))
    assert torch.equal(output["action"], theirs["action"]) and "tokens" not in output.keys()


def test_only_what_is_carried_out_is_said(tokens):
    ours, seen = Spoken(tokens, executed=3), PointMass(20, 0).observe()
    output, _ = ours.act(seen, ours.initial_state(20))
    assert output["tokens"].shape == (20, 6) and output["action"].shape == (20, 4, 2)
    whole = Spoken(tokens)
    again, _ = whole.act(seen, whole.initial_state(20), deterministic=True)
    shorter, _ = ours.act(seen, ours.initial_state(20), deterministic=True)
    assert torch.equal(again["action"][:, :3], shorter["action"][:, :3])


def test_of_drawn_steps_alone_words_are_drawn_and_the_likeliest_follow(tokens):
    ours, seen = Spoken(tokens, temperature=1.4, drawn_steps=1), PointMass(20, 0).observe()
    output, _ = ours.act(seen, ours.initial_state(20))
    assert output["tokens"].shape == output["log_prob"].shape == (20, 2)
    chance, _, _ = ours.evaluate(output["condition"], output["tokens"])
    torch.testing.assert_close(chance, output["log_prob"], atol=1e-5, rtol=1e-5)
    said = output["tokens"]
    for place in range(2, 8):  # what the network says greedily after them
        scores = ours.network.logits(output["condition"], torch.cat([said, said[:, :1]], 1))[:, place]
        said = torch.cat([said, scores.argmax(-1, keepdim=True)], 1)
    assert torch.equal(ours.actions_of_tokens(said), output["action"])


def test_probabilities_are_those_it_was_drawn_with(tokens):
    ours, seen = Spoken(tokens, temperature=1.4), PointMass(20, 0).observe()
    output, _ = ours.act(seen, ours.initial_state(20))
    chance, entropy, logits = ours.evaluate(output["condition"], output["tokens"])
    torch.testing.assert_close(chance, output["log_prob"], atol=1e-5, rtol=1e-5)
    assert (entropy >= 0).all() and (entropy <= np.log(BINS) + 1e-5).all()
    assert ours.from_base(logits, output["condition"], output["tokens"]).abs().max() < 1e-6


@pytest.mark.parametrize("ratio", ["token", "action", "chunk"])
def test_loss_is_the_hand_computed_one(tokens, ratio):
    torch.manual_seed(0)
    algorithm = token_ppo(
        OpenLoop(tokens, 4), SPEC, 16, **(SMALL | {"ratio": ratio, "entropy": 0.1, "base_kl": 0.2})
    )
    loop = Loop(PointMass(16, 1), algorithm.policy, algorithm.observe)
    while not algorithm.ready:
        loop.step()
    algorithm.update()
    batch, which = algorithm.batch, torch.arange(20)
    assert batch is not None
    loss, metrics = algorithm.actor_loss_of(which, torch.zeros(20, dtype=torch.long))
    condition, words = batch["condition"][which], batch["tokens"][which]
    with torch.no_grad():
        logits = algorithm.actor.network.logits(condition, words).double().log_softmax(-1).numpy()
        base = tokens.token_head.network.logits(condition, words).double().log_softmax(-1).numpy()
    chance = np.take_along_axis(logits, words[..., None].numpy(), -1)[..., 0]
    size = {"token": 1, "action": 2, "chunk": 8}[ratio]
    change = (chance - batch["log_prob"][which].numpy()).reshape(20, -1, size).sum(2)
    advantage = batch["advantage"][which].double().numpy()
    advantage = ((advantage - advantage.mean()) / (advantage.std(ddof=1) + 1e-8))[:, None]
    bounded = np.clip(np.exp(change), 1 - 0.2, 1 + 0.28)
    wanted = -np.minimum(np.exp(change) * advantage, bounded * advantage).mean()
    entropy = -(np.exp(logits) * logits).sum(-1).mean()
    divergence = (np.exp(logits) * (logits - base)).sum(-1).mean()
    assert loss.item() == pytest.approx(wanted - 0.1 * entropy + 0.2 * divergence, abs=1e-5)
    assert metrics["entropy"].item() == pytest.approx(entropy, abs=1e-5)


def test_clip_higher():
    ratio = torch.tensor([1.25, 1.35, 0.7, 0.9]).log()
    one = torch.ones(4)
    loss, metrics = clipped_loss(ratio, 0 * ratio, one, 0.2 * one, 0.28 * one)
    assert loss.item() == pytest.approx(-(1.25 + 1.28 + 0.7 + 0.9) / 4)
    assert metrics["clipped"].item() == 0.5
    loss, _ = clipped_loss(ratio, 0 * ratio, -one, 0.2 * one, 0.28 * one)
    assert loss.item() == pytest.approx((1.25 + 1.35 + 0.8 + 0.9) / 4)


def test_resume_is_bit_exact(tokens, tmp_path):
    torch.manual_seed(0)
    first = token_ppo(OpenLoop(tokens, 4), SPEC, 16, **SMALL)
    train(first, 2000)
    first.save(tmp_path / "a")
    found = []
    for _ in range(2):
        torch.manual_seed(len(found))  # whatever the new process would start with
        again = token_ppo(OpenLoop(tokens, 4), SPEC, 16, **SMALL)
        again.load(tmp_path / "a")
        train(again, 4000, Loop(PointMass(16, 5), again.policy, again.observe))
        found.append(list(again.actor.network.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert not torch.equal(found[0][0], next(first.actor.network.parameters()))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ratio": "word"}, "algorithm.ratio=word: choose from token, action, chunk"),
        ({"temperature": 0.0}, "algorithm.temperature=0.0 must be above 0"),
        ({"clip": 1.5}, "algorithm.clip=1.5"),
        ({"epochs": 0}, "algorithm.epochs=0 must be at least 1"),
        ({"drawn_steps": 5}, "algorithm.drawn_steps=5: at most the 4 steps"),
    ],
)
def test_bad_settings(tokens, settings, says):
    with pytest.raises(UserError, match=says):
        token_ppo(OpenLoop(tokens, 4), SPEC, 4, **(SMALL | settings))


def test_a_base_without_words():
    with pytest.raises(
        UserError, match="ToyDiffusion has no action tokens: choose a policy of type token_vla"
    ):
        token_ppo(OpenLoop(ToyDiffusion(updates=1), 4), SPEC, 4, **SMALL)


class Fast(BinWords):
    """Sixteen words of which the last ends a chunk."""

    end = BINS - 1

    def said(self, words):
        ends = words == self.end
        return ends.long().cumsum(1) - ends.long() == 0


def test_filling_after_the_end_of_a_chunk_teaches_nothing(tokens):
    """A clipped ratio per time step means nothing there; per word it is 1 for what was not said."""
    speaks = copy.copy(tokens)
    speaks.token_head = copy.copy(tokens.token_head)
    speaks.token_head.words = Fast(BINS, tokens.token_head.shape)
    with pytest.raises(UserError, match="FAST words"):
        token_ppo(OpenLoop(speaks, 4), SPEC, 4, drawn_steps=1, **SMALL)
    with pytest.raises(UserError, match="ratio=action: FAST words"):
        token_ppo(OpenLoop(speaks, 4), SPEC, 8, **SMALL)
    algorithm = token_ppo(OpenLoop(speaks, 4), SPEC, 8, ratio="token", **SMALL)
    words = torch.full((3, 8), 2)
    words[1, 3:] = Fast.end
    seen = PointMass(3, 0).observe()
    condition, _ = tokens.encode_tokens(seen, None)
    chance, entropy, _ = algorithm.actor.evaluate(condition, words)
    assert (chance[1, 4:] == 0).all() and (entropy[1, 4:] == 0).all() and (chance[1, :3] < 0).all()
