"""Answers of a synthetic episode by hand."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from films import film, films
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.critic.augment import GUISES, disguised
from vla_rl.critic.labels import done_label, progress_label, soft_words, still
from vla_rl.critic.pairs import PairConfig, Pairs
from vla_rl.critic.value import step_value
from vla_rl.errors import UserError


def test_progress_is_the_share_of_what_remained():
    first, second = torch.tensor([0, 0, 5, 8, 10, 4]), torch.tensor([5, 10, 10, 6, 0, 4])
    found = progress_label(first, second, torch.full((6,), 10))
    wanted = [0.5, 1.0, 1.0, -2 / 4, -1.0, 0.0]  # 8 -> 6: minus the way from 6 to 8, 2 of the 4 that remained
    assert torch.allclose(found, torch.tensor(wanted))


@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 20))
def test_it_is_antisymmetric_and_value_follows_it(i, j, end):
    i, j = min(i, end), min(j, end)
    one, other, until = (torch.tensor([v]) for v in (i, j, end))
    c = progress_label(one, other, until)
    assert torch.equal(c, -progress_label(other, one, until))
    if i != end and j != end:
        value = step_value(torch.tensor([i / end]), c)
        assert value.item() == pytest.approx(j / end, abs=1e-5)


def test_done_is_said_where_it_is_certain():
    moments = torch.tensor([0, 7, 8, 9, 10, 12, 10])
    success = torch.tensor([True] * 6 + [False])
    label = done_label(moments, torch.full((7,), 10), success)
    assert label[[0, 1, 4, 5, 6]].tolist() == [0, 0, 1, 1, 0] and label[2:4].isnan().all()
    timed = done_label(moments, torch.full((7,), 10), success, 1.0)
    assert timed.tolist() == [0, 0, 0, 0, 1, 1, 0]


def test_pictures_that_hardly_differ_are_the_same():
    one = film(0).pictures
    other = one.clone()
    other[:, :, :2, :3] = 255  # 6 of 4096 pixels
    assert still(one, other).all() and not still(one[:1], one[-1:]).any()


def test_an_answer_is_a_bump_over_the_words():
    words = soft_words(torch.tensor([0.0, 0.5]), 256, 0.05)
    centres = (torch.arange(256) + 0.5) / 128 - 1
    assert torch.allclose(words.sum(1), torch.ones(2)) and torch.allclose(
        words @ centres, torch.tensor([0.0, 0.5]), atol=1e-3
    )


def _pairs(seed=0, **settings):
    settings = {"backward": 0.0, "disguised": 0.0} | settings
    return Pairs(films(16), PairConfig(skip=2, references=3, **settings), torch.Generator().manual_seed(seed))


def test_draws_are_a_function_of_the_seed():
    one, other = _pairs(reference_share=1.0).draw(20), _pairs(reference_share=1.0).draw(20)
    assert torch.equal(one.moments, other.moments) and one.tasks == other.tasks
    assert torch.equal(one.references, other.references)
    assert not torch.equal(one.moments, _pairs(1, reference_share=1.0).draw(20).moments)


def test_labels_of_draws_are_those_of_their_moments():
    draws = _pairs(mismatch=0.0, same=0.0, reference_share=0.0)
    asked = draws.draw(200)
    assert asked.references is None
    for moments, labels, task in zip(asked.moments, asked.progress, asked.tasks, strict=True):
        which = int((draws.first <= moments.min()).sum()) - 1
        each = draws.trajectories[which]
        assert each.success and each.task == task
        i, near, far = (moments - draws.first[which]).tolist()
        assert near == min(i + 2, each.end) and i < far <= each.end
        remaining = each.end - i
        wanted = torch.tensor([near - i, i - near, far - i, i - far]) / remaining
        pictures = each.pictures[[i, near, i, far]]
        same = still(pictures[::2], pictures[1::2])[[0, 0, 1, 1]]
        assert torch.allclose(labels, torch.where(same, 0.0, wanted))
    assert 0.3 < asked.done.mean() < 0.6
    assert (asked.progress.sum(1).abs() < 1e-6).all(), "as many ways back as there"


def test_the_instruction_of_another_task_makes_no_progress():
    asked = _pairs(mismatch=1.0, reference_share=0.0).draw(50)
    assert (asked.progress == 0).all() and (asked.done == 0).all()


def test_an_instruction_that_was_believed_is_asked_more_often():
    seen = [replace(t, task=f"task {i % 3}") for i, t in enumerate(films(16))]
    config = PairConfig(skip=2, mismatch=1.0, believed=0.9, reference_share=0.0)
    draws = Pairs(seen, config, torch.Generator().manual_seed(0))
    even = Counter(zip(*_asked(draws), strict=True))
    assert len(even) == 6, "nothing is believed yet: all of them"
    for _ in range(20):
        asked = draws.draw(16)
        pairs = list(zip(asked.films, asked.tasks, strict=True))
        draws.believed(asked, torch.tensor([0.9 if pair == ("task 2", "task 0") else 0.0 for pair in pairs]))
    shown, words = _asked(draws)
    of_two = [word for film, word in zip(shown, words, strict=True) if film == "task 2"]
    assert of_two.count("task 0") > 0.8 * len(of_two) and set(of_two) == {"task 0", "task 1"}
    for _ in range(30):
        asked = draws.draw(16)
        draws.believed(asked, torch.zeros(16))
    assert draws.belief.max() < 0.1, "what it has learned not to believe is let go"


def _asked(draws):
    many = draws.draw(400)
    return many.films, many.tasks


def test_references_are_successes_of_the_same_task_from_beginning_to_end():
    draws = _pairs(mismatch_shown=0.0, reference_share=1.0, nameless=1.0)
    asked = draws.draw(40)
    assert set(asked.tasks) == {"do as shown"}
    pictures = asked.pictures.view(40, -1)
    for moments, frames, singles in zip(asked.moments, asked.references, pictures, strict=True):
        own, shown, *others = (
            int((draws.first <= at).sum()) - 1 for at in (moments.min(), frames[0], *singles)
        )
        assert own != shown
        assert len({draws.trajectories[i].task for i in (own, shown, *others)}) == 1
        assert (
            frames[0] == draws.first[shown]
            and frames[-1] == draws.first[shown] + draws.trajectories[shown].end
        )


def test_pictures_of_another_task_than_the_reference_are_not_done():
    draws = _pairs(mismatch_shown=1.0, reference_share=1.0, nameless=0.0)
    asked = draws.draw(20)
    assert (asked.done == 0).all() and (asked.progress == 0).all()
    assert asked.done_tasks == [task for task in asked.tasks for _ in range(2)], "asked as the reference is"
    for at, task in zip(asked.pictures, asked.done_tasks, strict=True):
        assert draws.trajectories[int((draws.first <= at).sum()) - 1].task != task


def test_a_film_played_backwards_is_a_task_of_its_own():
    draws = _pairs(mismatch_shown=0.0, same=0.0, reference_share=1.0, backward=1.0)
    asked = draws.draw(100)
    assert set(asked.tasks) == set(asked.done_tasks) == {"do as shown"}
    for moments, labels, frames in zip(asked.moments, asked.progress, asked.references, strict=False):
        which, shown = (int((draws.first <= at).sum()) - 1 for at in (moments.min(), frames[0]))
        each, other = draws.trajectories[which], draws.trajectories[shown]
        assert each.success and each.task == other.task
        assert frames[0] == draws.first[shown] + other.end and frames[-1] == draws.first[shown]
        i, near, far = (each.end - (moments - draws.first[which])).tolist()
        assert 0 <= i <= near and i < far <= each.end, "places on the film as it is played"
        wanted = torch.tensor([near - i, i - near, far - i, i - far]) / (each.end - i)
        assert ((labels - wanted).abs() < 1e-6)[labels != 0].all() and labels.any()
    for at, done in zip(asked.pictures, asked.done, strict=True):
        which = int((draws.first <= at).sum()) - 1
        each, moment = draws.trajectories[which], int(at - draws.first[which])
        assert each.success and (moment == 0 if done else moment > 0.2 * each.end)
    both = _pairs(mismatch_shown=0.0, reference_share=1.0, backward=0.3, nameless=0.5).draw(100)
    assert len(set(both.tasks)) > 1 and "do as shown" in both.tasks


def test_a_disguise_is_worn_by_film_and_reference_alike_where_no_name_gives_it_away():
    draws = _pairs(mismatch_shown=0.0, reference_share=1.0, nameless=0.5, disguised=1.0)
    asked = draws.draw(60)
    named = torch.tensor([task != "do as shown" for task in asked.tasks])
    assert named.any() and (asked.guises[named] == 0).all() and (asked.guises[~named] > 0).all()
    assert asked.guises.max() < GUISES and asked.guises.unique().numel() > 10
    assert not _pairs(reference_share=1.0).draw(20).guises.any()


def test_disguises():
    pictures = torch.rand(GUISES, 2, 3, 4, 5)
    seen = disguised(pictures, torch.arange(GUISES))
    assert torch.equal(seen[0], pictures[0])
    assert torch.equal(seen[6], pictures[6].flip(-1)), "mirrored"
    assert torch.equal(seen[12], pictures[12].flip(-2)), "upside down"
    assert torch.equal(seen[23], pictures[23][:, [2, 1, 0]].flip((-1, -2)))
    one = disguised(pictures[:1].expand(GUISES, -1, -1, -1, -1), torch.arange(GUISES))
    assert len(one.flatten(1).unique(dim=0)) == GUISES, "all of them differ"


def test_no_success_nothing_to_learn():
    with pytest.raises(UserError, match="none of the 2 episodes succeeded"):
        Pairs([film(i, success=False) for i in range(2)], PairConfig(), torch.Generator())


@pytest.mark.parametrize(
    "name",
    ["skip", "pictures", "references", "mismatch", "believed", "mismatch_shown", "backward", "disguised"],
)
def test_settings_that_mean_nothing(name):
    with pytest.raises(UserError, match=f"train.pairs.{name}=-1"):
        Pairs(films(4), PairConfig(**{name: -1}), torch.Generator())
