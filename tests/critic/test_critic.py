"""A tiny critic learns to judge films, is measured, ranks a data set, goes on bit for bit, and refuses what it cannot judge."""

import json
import shutil
from dataclasses import replace

import pytest
import tiny
import torch
from films import TASKS, film, films

from vla_rl.critic.evaluate import evaluate
from vla_rl.critic.metrics import voc
from vla_rl.critic.model import PROGRESS, Critic
from vla_rl.critic.page import write_page
from vla_rl.critic.pairs import PairConfig
from vla_rl.critic.train import CriticConfig, CriticTrainer, calibrate, split
from vla_rl.errors import UserError

PAIRS = PairConfig(skip=2, references=3, reference_share=0.1, mismatch=0.05, pictures=1)


def settings(start, **more):
    return CriticConfig(
        **{"start": str(start), "batch_size": 8, "pairs": PAIRS, "shift": 1, "lr": 2e-3, "warmup": 20} | more
    )


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return tiny.tiny_token(tmp_path_factory.mktemp("start") / "policy")


@pytest.fixture(scope="module")
def critic(start, tmp_path_factory):
    out = tmp_path_factory.mktemp("critic") / "critic"
    CriticTrainer(settings(start, steps=500), films(48), out).learn()
    return Critic.load(out)


def test_it_tells_progress_both_ways_and_done(critic):
    summary, curves = evaluate(critic, films(16, first=900))
    assert summary["voc"] > 0.85 and summary["voc_reversed"] < -0.3, summary
    assert summary["pair_sign"] > 0.85 and not summary["flat"]
    assert summary["done_recall"] > 0.5 and summary["match_accepted"] > 0.5
    assert all(len(c.judged.value) == len(c.judged.moments) for c in curves)


def test_progress_is_antisymmetric_within_tolerance(critic):
    each = film(950)
    with torch.no_grad():
        seen = critic.look(each.pictures)
    there = critic.progress(seen[:-4], seen[4:], [each.task] * (len(seen) - 4))[0]
    back = critic.progress(seen[4:], seen[:-4], [each.task] * (len(seen) - 4))[0]
    assert (there + back).abs().mean() < 0.15 and (there > 0).float().mean() > 0.8


def test_questions_in_one_batch_or_alone_have_one_answer(critic):
    each = film(951)
    with torch.no_grad():
        seen = critic.look(each.pictures)
    together = critic.progress(seen[:3], seen[3:6], [TASKS[0], TASKS[1], "go"])[0]
    alone = [
        critic.progress(seen[i : i + 1], seen[i + 3 : i + 4], [t])[0]
        for i, t in enumerate([TASKS[0], TASKS[1], "go"])
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)


def test_a_reference_that_is_read_once_is_as_good_as_one_read_with_every_question(critic):
    each, shown = film(952), critic.refer(film(953))
    with torch.no_grad():
        seen = critic.look(each.pictures)
        tasks = [TASKS[0], TASKS[1], "another thing to do"]
        found = critic.progress(seen[:3], seen[3:6], tasks, shown)[0]
        whole = critic.compared(seen[:3], seen[3:6], shown.expand(3, *shown.shape))
        named = [*tasks[:2], "do as shown"]  # the third one it was never trained on
        logits = critic.answers(whole, critic.words(PROGRESS, named))
    assert critic.named(tasks, None) == tasks, "without a reference its words are all there is"
    assert torch.allclose(found, logits.softmax(-1) @ critic.centres, atol=1e-5)


def test_a_page_with_curves_over_video(critic, tmp_path):
    summary, curves = evaluate(critic, films(4, first=900), references=[film(990), film(991, 1)])
    text = write_page(tmp_path / "page.html", summary, curves).read_text()
    assert text.count("<video") == 4 and "value with a reference" in text and "voc reversed" in text


def test_resume_is_bit_exact(start, tmp_path):
    asked = settings(start, steps=6, save_every=3, pairs=replace(PAIRS, mismatch=0.5))
    through = CriticTrainer(asked, films(12), tmp_path / "through")
    through.learn()
    cut = CriticTrainer(asked, films(12), tmp_path / "cut")

    def stop(step, _):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut.learn(stop)
    again = CriticTrainer(asked, films(12), tmp_path / "cut")
    assert again.resume() and again.step == 3 and again.draws.belief.any()
    again.learn()
    for one, other in zip(
        through.policy.state_dict().values(), again.policy.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
    assert not (tmp_path / ".cut.training").exists() and (tmp_path / "cut" / "critic.json").is_file()
    with pytest.raises(UserError, match="exists: choose another out"):
        CriticTrainer(settings(start), films(12), tmp_path / "cut")


def test_another_run_is_not_continued(start, tmp_path):
    begun = CriticTrainer(settings(start, steps=2, save_every=1), films(8), tmp_path / "x")
    with pytest.raises(KeyboardInterrupt):
        begun.learn(lambda step, _: (_ for _ in ()).throw(KeyboardInterrupt) if step == 2 else None)
    with pytest.raises(UserError, match="begun with other settings or data"):
        CriticTrainer(settings(start, steps=3), films(8), tmp_path / "x").resume()


def test_acting_is_still_its_other_answer(critic):
    from vla_rl.policies.lerobot import LeRobotPolicy

    policy = LeRobotPolicy(critic.policy.config.pretrained_path)
    assert policy.spec.action_dim == 3, "one folder acts and judges"


def test_every_task_keeps_a_share_of_both_outcomes():
    learning, kept = split(films(40), 0.25, 0)
    assert len(learning) + len(kept) == 40
    for task in range(2):
        assert sum(t.task == TASKS[task] and t.success for t in kept) >= 2
    assert any(not t.success for t in kept)


def test_what_cannot_be_judged_is_refused(critic, start, tmp_path):
    each = film(1)
    with pytest.raises(UserError, match="1 pictures: progress needs at least two"):
        critic.judge(each.pictures[:1], each.task)
    with pytest.raises(UserError, match="pictures of 32x32, the critic was trained on 64x64"):
        critic.judge(each.pictures[..., ::2, ::2], each.task)
    with pytest.raises(UserError, match="has 300 bytes: 1 to 255"):
        critic.judge(each.pictures, "x" * 300)
    with pytest.raises(UserError, match="did not succeed: it cannot be a reference"):
        critic.refer(film(2, success=False))
    with pytest.raises(UserError, match="is no critic"):
        Critic.load(start)
    with pytest.raises(UserError, match="no episode here succeeded"):
        evaluate(critic, [film(3, success=False)])
    with pytest.raises(UserError, match="train.start names no policy"):
        CriticTrainer(settings(""), films(4), tmp_path / "y")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "critic.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        Critic.load(broken)


def test_notes_say_what_it_knows(critic):
    notes = json.loads((critic.policy.config.pretrained_path / "critic.json").read_text())
    assert notes["tasks"] == sorted(TASKS) and notes["image"] == [64, 64] and notes["skip"] == 2


def test_thresholds_are_set_on_episodes_of_ones_own(critic, tmp_path):
    folder = tmp_path / "critic"
    shutil.copytree(critic.policy.config.pretrained_path, folder)
    found = calibrate(folder, films(12, first=700), 0.98, 0.95)
    notes = json.loads((folder / "critic.json").read_text())
    assert set(found) == set(TASKS) and all(notes["thresholds"][t] == v >= 0.5 for t, v in found.items())
    assert (
        "pretrained_path" not in json.loads((folder / "config.json").read_text())
        or not json.loads((folder / "config.json").read_text())["pretrained_path"]
    )


def test_a_film_played_backwards_ends_lower(critic):
    each = film(970)
    forward, backward = (critic.judge(p, each.task).value for p in (each.pictures, each.pictures.flip(0)))
    assert voc(forward) > 0.8 and forward[-1] > backward[-1] + 0.3


def test_it_says_what_a_video_was_asked_for(start, tmp_path):
    """A tiny critic learns its two instructions by heart; one that was not taught to describe says so."""
    CriticTrainer(settings(start, steps=120, describe_weight=1.0), films(16), tmp_path / "critic").learn()
    critic = Critic.load(tmp_path / "critic")
    said = [critic.describe(film(900 + i).pictures) for i in range(6)]
    assert set(said) <= set(TASKS)
    assert sum(s == film(900 + i).task for i, s in enumerate(said)) >= 4
    assert evaluate(critic, films(6, first=900))[0]["described"] >= 0.5
    with pytest.raises(UserError, match="at least two"):
        critic.describe(film(900).pictures[:1])


def test_text_is_said_as_it_is_scored(critic):
    """Greedy decoding with a cache agrees with one pass over the same tokens."""
    words, mask, question = critic.described(["push the cube", "a longer sentence about a drawer"])
    with torch.no_grad():
        seen = critic.look(film(900).pictures[:3]).flatten(0, 1)
        said = critic.network.say(seen, words[0, :question], end=-1, most=8)
        tokens = torch.cat([words[0, :question], torch.tensor(said)])[None]
        logits = critic.network.text_logits(seen[None], tokens, torch.ones_like(tokens, dtype=torch.bool))
    assert logits[0, question:].argmax(-1).tolist() == said
    assert mask.sum(1).tolist()[0] < mask.sum(1).tolist()[1]


def test_a_critic_that_was_not_taught_to_describe_says_so(critic):
    with pytest.raises(UserError, match="describe_weight"):
        critic.describe(film(900).pictures)
