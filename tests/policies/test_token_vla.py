"""``token_vla``: bins, cached decoding against one pass, probabilities against scipy, a folder that can be moved, cloning."""

import json
import shutil

import numpy as np
import pytest
import scipy.special
import scipy.stats
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from lerobot.configs import FeatureType, PolicyFeature

from vla_rl.checks.policy import check_policy
from vla_rl.errors import UserError
from vla_rl.policies.action_tokens import actions_of, around, drawn, log_probs_of, tokens_of
from vla_rl.policies.lerobot import LeRobotPolicy
from vla_rl.policies.nano_token import token_policy
from vla_rl.policies.spoken import Spoken
from vla_rl.policies.token_head import TokenHead

FEATURES = (
    {
        "observation.state": PolicyFeature(FeatureType.STATE, (5,)),
        "observation.images.base": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
    },
    {"action": PolicyFeature(FeatureType.ACTION, (3,))},
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return LeRobotPolicy(tiny.tiny_token(tmp_path_factory.mktemp("token") / "policy"))


@given(st.floats(-1, 1, width=32), st.integers(2, 512))
def test_a_number_comes_back_within_half_a_bin(number, bins):
    token = tokens_of(torch.tensor([number]), bins)
    assert 0 <= token < bins
    assert abs(actions_of(token, bins).item() - number) <= 1 / bins + 1e-6
    assert torch.equal(tokens_of(actions_of(token, bins), bins), token)


@given(st.floats(-1.5, 1.5), st.floats(0.02, 0.5), st.integers(16, 256))
def test_a_blurred_word_is_a_gaussian_over_the_bins(number, width, bins):
    middles = actions_of(torch.arange(bins), bins).double().numpy()
    about = np.clip(number, middles[0], middles[-1])
    wanted = scipy.stats.norm.pdf(middles, about, width)
    found = around(torch.tensor([number], dtype=torch.float64), width, bins).exp()[0]
    np.testing.assert_allclose(found, wanted / wanted.sum(), atol=1e-5)


def test_numbers_outside_go_to_the_outermost_bins():
    assert tokens_of(torch.tensor([-9.0, 9.0]), 256).tolist() == [0, 255]


def test_conforms(policy):
    check_policy(policy, tiny.env_spec(), steps=2)


@pytest.mark.parametrize("temperature", [1.0, 1.6])
def test_cached_decoding_is_one_pass_and_naive_decoding(policy, temperature):
    """Prompts of different length in one batch; word after word without a cache; all words at once."""
    head = policy.token_head
    observation = tiny.observe(3)
    observation["task"] = ["lift", "push the cube to the goal", "pull the cube back"]
    condition, _ = policy.encode_tokens(observation, policy.initial_state(3))
    found = head.network.sample(condition, head.count, temperature, torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = head.network.logits(condition, found["tokens"])
    chance, entropy = log_probs_of(logits, found["tokens"], temperature)
    torch.testing.assert_close(chance, found["log_prob"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(entropy, found["entropy"], atol=1e-4, rtol=1e-4)
    assert found["tokens"].unique().numel() > 5
    generator, said = torch.Generator().manual_seed(1), torch.zeros(3, 0, dtype=torch.long)
    for _ in range(head.count):
        dummy = torch.cat([said, torch.zeros(3, 1, dtype=torch.long)], 1)
        with torch.no_grad():
            scores = head.network.logits(condition, dummy)[:, -1]
        said = torch.cat([said, drawn(scores, temperature, generator)[:, None]], 1)
    assert torch.equal(said, found["tokens"])


def test_a_row_does_not_depend_on_its_neighbours(policy):
    """Padding of a longer prompt beside it changes nothing."""
    head, observation = policy.token_head, tiny.observe(2)
    observation["task"] = ["lift", "push the cube to the goal"]
    both, _ = policy.encode_tokens(observation, policy.initial_state(2))
    alone = both[:1].clone()
    alone["words"][:, 40:] = 7  # where the mask says that nothing is
    with torch.no_grad():
        tokens = torch.zeros(2, head.count, dtype=torch.long)
        together = head.network.logits(both, tokens)[:1]
        torch.testing.assert_close(head.network.logits(alone, tokens[:1]), together, atol=1e-4, rtol=1e-4)


def test_probabilities_are_scipys():
    logits, tokens = torch.randn(4, 6, 16), torch.randint(16, (4, 6))
    chance, entropy = log_probs_of(logits, tokens, 0.7)
    wanted = scipy.special.log_softmax(logits.double().numpy() / 0.7, axis=-1)
    np.testing.assert_allclose(
        chance, np.take_along_axis(wanted, tokens[..., None].numpy(), -1)[..., 0], rtol=1e-5
    )
    np.testing.assert_allclose(entropy, scipy.stats.entropy(np.exp(wanted), axis=-1), rtol=1e-5)


def test_words_are_drawn_from_the_distribution():
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]])
    words = drawn(logits.expand(20_000, -1), 1.3, torch.Generator().manual_seed(0))
    expected = 20_000 * (logits[0] / 1.3).softmax(0).numpy()
    assert (
        scipy.stats.chisquare(words.bincount(minlength=4).numpy(), expected / expected.sum() * 20_000).pvalue
        > 0.01
    )
    assert drawn(logits, 0.0).item() == 3


def test_the_policy_says_its_likeliest_words(policy):
    head, observation = policy.token_head, tiny.observe(2)
    output, _ = policy.act(observation, policy.initial_state(2))
    condition, _ = policy.encode_tokens(observation, policy.initial_state(2))
    words = head.network.sample(condition, head.count, 0.0)["tokens"]
    torch.testing.assert_close(output["action"], policy.actions_of_tokens(words))
    assert torch.equal(head.tokens_of(head.normalised(words)), words)


def test_cloning_with_blur_makes_the_neighbours_of_a_word_likely_too(tmp_path):
    policy = LeRobotPolicy(tiny.tiny_token(tmp_path / "blurred", blur=0.1))
    head, model = policy.token_head, policy.model
    assert model.config.blur == 0.1
    condition, _ = policy.encode_tokens(tiny.observe(1), policy.initial_state(1))
    chunk = torch.linspace(-0.9, 0.9, head.count).view(1, *head.shape)
    tokens = tokens_of(chunk, head.bins).flatten(1)
    model.condition = lambda batch: condition
    batch = {"action": chunk, "action_is_pad": torch.zeros(1, head.shape[0], dtype=torch.bool)}
    model.train().requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss, _ = model.forward(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05, "the divergence, which can vanish, and not the cross-entropy"
    with torch.no_grad():
        chances = model.network.logits(condition, tokens).softmax(-1)
    middles = actions_of(torch.arange(head.bins), head.bins)
    mean = (chances * middles).sum(-1)
    std = (chances * (middles - mean[..., None]).square()).sum(-1).sqrt()
    inner = slice(4, -4)  # at the ends of the range a side is cut off
    assert torch.allclose(mean[:, inner], chunk.flatten(1)[:, inner], atol=0.05)
    assert torch.allclose(std[:, inner], torch.tensor(0.1), atol=0.03)


def test_it_looks_listens_and_feels(policy):
    head = policy.token_head
    tokens = torch.zeros(1, head.count, dtype=torch.long)

    def scores(**changed):
        seen = tiny.observe(1) | {"task": ["lift the cube"]} | changed
        condition, _ = policy.encode_tokens(seen, policy.initial_state(1))
        with torch.no_grad():
            return head.network.logits(condition, tokens)

    before = scores()
    for key, value in (
        ("task", ["push the cube to the goal"]),
        ("observation.state", torch.ones(1, 5)),
        ("observation.images.base", torch.full((1, 3, 64, 64), 200, dtype=torch.uint8)),
    ):
        assert (scores(**{key: value}) - before).abs().max() > 1e-4, key


def test_it_tells_what_it_was_asked_to_do(policy):
    observation = tiny.observe(3)
    observation["task"] = ["lift", "push the cube to the goal", "pull the cube back"]
    condition, _ = policy.encode_tokens(observation, policy.initial_state(3))
    assert policy.instructions(condition) == observation["task"]


def test_the_folder_can_be_moved(policy, tmp_path):
    shutil.copytree(policy.path, tmp_path / "moved")
    moved = LeRobotPolicy(tmp_path / "moved")
    seen = tiny.observe(2)
    first, _ = policy.act(seen, policy.initial_state(2))
    again, _ = moved.act(seen, moved.initial_state(2))
    assert torch.equal(first["action"], again["action"])
    assert json.loads((tmp_path / "moved" / "config.json").read_text())["vlm_model_name"] == "vlm"


def test_a_stem_of_convolutions_comes_back_with_the_folder_and_learns(tmp_path):
    policy = LeRobotPolicy(tiny.tiny_token(tmp_path / "stem", stem=4))
    again = LeRobotPolicy(shutil.copytree(policy.path, tmp_path / "moved"))
    picture = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    network = policy.token_head.copy()
    seen = network.look(picture)
    assert seen.shape[1] == 4  # as many tokens as with patches
    torch.testing.assert_close(again.token_head.network.look(picture), seen)
    seen.square().mean().backward()
    stem = [p for name, p in network.named_parameters() if "patch_embeddings.layers" in name]
    assert len(stem) == 14 and all(p.grad is not None for p in stem)
    check_policy(policy, tiny.env_spec(), steps=1)


def test_keypoints_come_back_with_the_folder_and_learn(tmp_path):
    policy = LeRobotPolicy(tiny.tiny_token(tmp_path / "places", keypoints=8, vision_width=32))
    again = LeRobotPolicy(shutil.copytree(policy.path, tmp_path / "moved"))
    network = policy.token_head.copy()
    count = len(policy.spec.image_keys)
    pictures = torch.randint(0, 255, (2, count, 3, 64, 64), dtype=torch.uint8)
    seen = network.see(pictures)
    assert seen.shape[1] == 4 * count
    torch.testing.assert_close(again.token_head.network.see(pictures), seen)
    seen.square().mean().backward()
    tower = [p for name, p in network.named_parameters() if "vision_tower" in name]
    assert len(tower) == count * 15 and all(p.grad is not None for p in tower)
    assert not any("multi_modal_projector" in name for name, _ in network.named_parameters())
    check_policy(policy, tiny.env_spec(), steps=1)


def test_a_copy_learns_and_the_base_does_not(policy):
    head = policy.token_head
    network = head.copy()
    condition, _ = policy.encode_tokens(tiny.observe(2), policy.initial_state(2))
    tokens = torch.zeros(2, head.count, dtype=torch.long)
    torch.testing.assert_close(network.logits(condition, tokens), head.network.logits(condition, tokens))
    network.logits(condition, tokens).square().mean().backward()
    assert all(p.grad is None for p in head.network.parameters())
    trained = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is not None]
    assert any("vision_tower" in n for n in trained) and any("lm_head" in n for n in trained)


def test_adapters_alone_learn(tmp_path):
    policy = LeRobotPolicy(tiny.tiny_token(tmp_path / "lora", lora_rank=4, freeze_vision=True))
    network = policy.token_head.copy()
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained and not any("vision_tower" in name for name in trained)
    assert all(
        "lora_" in n or "embed_tokens" in n or "lm_head" in n or "state_token" in n for n in trained
    ), trained
    check_policy(policy, tiny.env_spec(), steps=1)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"txt_width": 3}, "no setting txt_width: did you mean text_width"),
        ({"patch": 24}, "a multiple of 48 pixels, not 64x64"),
        ({"vlm": "/nowhere/model"}, "vlm=/nowhere/model does not load"),
    ],
)
def test_bad_settings(tmp_path, settings, says):
    with pytest.raises(UserError, match=says):
        token_policy(tmp_path, features=FEATURES, **settings)


def test_a_stem_halves_until_a_patch_is_one_number(tmp_path):
    wide = {"observation.images.base": PolicyFeature(FeatureType.VISUAL, (3, 96, 96))}
    with pytest.raises(UserError, match="stem=4 needs a patch that is a power of two, not 24"):
        token_policy(tmp_path, features=(wide, FEATURES[1]), stem=4, patch=24)


def test_eyes_that_never_change_look_once(tmp_path):
    policy = LeRobotPolicy(tiny.tiny_token(tmp_path / "frozen", freeze_vision=True))
    student = Spoken(policy, generator=torch.Generator().manual_seed(0))
    seen = tiny.observe(2)
    output, _ = student.act(seen, student.initial_state(2))
    condition, _ = policy.encode_tokens(seen, policy.initial_state(2))
    assert "pictures" not in output["condition"].keys() and "pictures" in condition.keys()
    now, _, logits = student.evaluate(output["condition"], output["tokens"])
    _, _, from_pictures = student.evaluate(condition, output["tokens"])
    torch.testing.assert_close(logits, from_pictures)
    torch.testing.assert_close(now, output["log_prob"])
    free = Spoken(LeRobotPolicy(tiny.tiny_token(tmp_path / "free")))
    assert "pictures" in free.encode_tokens(seen, free.initial_state(2))[0].keys()


def test_each_camera_has_its_own_tower(tmp_path):
    inputs = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)) for name in ("a", "b")
    }
    settings = {"keypoints": 4, "vision_width": 32, "vision_layers": 1, "text_width": 32, "text_layers": 1}
    network = token_policy(tmp_path, features=(inputs, FEATURES[1]), **settings).network
    picture = torch.randint(0, 255, (1, 1, 3, 64, 64), dtype=torch.uint8)
    first, second = network.see(picture.expand(1, 2, -1, -1, -1)).chunk(2, 1)
    assert (first - second).abs().max() > 1e-4
    torch.testing.assert_close(network.look(picture[:, 0], 1), second)


def test_one_tower_at_a_time(tmp_path):
    with pytest.raises(UserError, match="keypoints and stem are two towers"):
        token_policy(tmp_path, features=FEATURES, stem=4, keypoints=8)


def test_other_types_have_no_words(tmp_path):
    policy = LeRobotPolicy(tiny.tiny_vla(tmp_path / "vla"))
    with pytest.raises(UserError, match="a smolvla policy has no action tokens: choose one of token_vla"):
        TokenHead(policy.model)
