"""Values from judgements: the formula, its inverse, and errors that do not add up."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.critic.metrics import calibrated, finding, flat, precision_recall, reliability, voc, voc_f1
from vla_rl.critic.value import ValueFilter, accumulate, step_value, work_of


def test_the_formula_by_hand():
    assert torch.allclose(accumulate(torch.tensor([0.5, 0.5, -0.5])), torch.tensor([0.0, 0.5, 0.75, 0.5]))


@given(st.floats(0, 0.95), st.floats(0, 0.9))
def test_there_and_back(value, progress):
    there = step_value(torch.tensor(value), torch.tensor(progress))
    assert step_value(there, torch.tensor(-progress)).item() == pytest.approx(value, abs=1e-5)


def test_errors_do_not_add_up_over_a_long_episode():
    torch.manual_seed(0)
    length, rows = 400, 64
    truth = torch.linspace(0, 0.75, length + 1)
    exact = (truth[1:] - truth[:-1]) / (1 - truth[:-1])
    pair = exact[:, None] + 0.03 * torch.randn(length, rows) + 0.004  # noisy, and a little too hopeful
    whole = truth[1:, None] + 0.1 * torch.randn(length, rows)
    track, every = ValueFilter(rows), torch.arange(rows)
    for step in range(length):
        deviation = torch.full((rows,), 0.03), torch.full((rows,), 0.1)
        value = track.update(every, (pair[step], deviation[0]), (whole[step], deviation[1]))
    summed = accumulate(pair)[-1]
    ours, theirs = ((v - 0.75).abs().mean().item() for v in (value, summed))
    assert ours < 0.06 < theirs
    assert track.std.max() < 0.1


@given(st.lists(st.floats(-0.9, 0.9), min_size=1, max_size=20))
def test_work_adds_up_and_is_the_value_formula(pairs):
    """Where the value stays within 0 ... 1, 1 - exp(-work) is the accumulated value."""
    pairs = torch.tensor(pairs, dtype=torch.float64)
    work = torch.cat([torch.zeros(1), work_of(pairs).cumsum(0)])
    assert torch.allclose(work_of(-pairs), -work_of(pairs))
    if (work >= 0).all():
        assert torch.allclose(accumulate(pairs), 1 - torch.exp(-work), atol=1e-5)


def test_rows_are_their_own():
    track = ValueFilter(3)
    sure = torch.tensor([0.03])
    track.update(torch.tensor([1]), (torch.tensor([0.4]), sure), (torch.tensor([0.4]), sure))
    assert track.value.tolist() == pytest.approx([0.0, 0.4, 0.0])
    track.begin(torch.tensor([False, True, False]))
    assert track.work.tolist() == [0, 0, 0] and track.variance.tolist() == [0, 0, 0]


def test_order_correlation():
    rising = torch.linspace(0, 1, 9)
    assert voc(rising) == pytest.approx(1) and voc(rising.flip(0)) == pytest.approx(-1)
    assert voc(torch.zeros(9)) == 0.0 and voc_f1(0.8, -0.8) == pytest.approx(0.8) and voc_f1(0.8, 0.1) == 0.0


def test_thresholds_for_a_precision_and_for_a_recall():
    chances = torch.tensor([0.1, 0.4, 0.6, 0.7, 0.9])
    truth = torch.tensor([False, False, True, False, True])
    assert precision_recall(chances, truth, 0.65) == (0.5, 0.5)
    assert calibrated(chances, truth, 0.98) == pytest.approx(0.8)
    assert calibrated(chances, truth, 0.6) == pytest.approx(0.5)
    assert calibrated(chances, truth, 0.6, 0.56) == pytest.approx(0.58)
    assert calibrated(chances, truth, 0.6, 0.65) == pytest.approx(0.8)
    assert calibrated(chances, torch.zeros(5, dtype=torch.bool), 0.98) > 1
    assert [round(finding(chances, truth, r), 3) for r in (0.5, 0.51, 1.0)] == [0.9, 0.6, 0.6]
    assert finding(chances, torch.zeros(5, dtype=torch.bool), 0.9) == 0.0
    cells = reliability(chances, truth)
    assert sum(c["count"] for c in cells) == 5


def test_a_critic_that_says_nothing_is_told():
    assert flat([torch.zeros(4), torch.full((5,), 0.01)]) and not flat(
        [torch.zeros(4), torch.linspace(0, 1, 3)]
    )
