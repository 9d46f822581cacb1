import math

import pytest

from vla_rl.stats import ratio_interval, summary, wilson


@pytest.mark.parametrize(
    "won, n, low, high",
    # Published values (Newcombe 1998, table I, method 3).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_agrees_with_newcombe(won, n, low, high):
    assert wilson(won, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_at_the_edges():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == pytest.approx(1.0)
    assert wilson(50, 100, z=3)[0] < wilson(50, 100)[0]
    with pytest.raises(ValueError, match="11 successes of 10"):
        wilson(11, 10)


@pytest.mark.parametrize("won, n", [(3, 10), (48, 100), (95, 100)])
def test_wilson_ends_solve_its_equation(won, n):
    z = 1.959964
    for p in wilson(won, n):
        assert abs(won / n - p) == pytest.approx(z * math.sqrt(p * (1 - p) / n))


def test_summary_has_the_documented_shape():
    result = summary([True, False, True, True], ["b", "a", "a", "b"])
    assert list(result) == ["successes", "episodes", "rate", "wilson95", "per_task"]
    assert (result["successes"], result["episodes"], result["rate"]) == (3, 4, 0.75)
    assert result["wilson95"] == list(wilson(3, 4))
    assert list(result["per_task"]) == ["a", "b"]
    assert result["per_task"]["a"] == {
        "successes": 1,
        "episodes": 2,
        "rate": 0.5,
        "wilson95": list(wilson(1, 2)),
    }


def test_summary_of_nothing_and_of_unequal_lengths():
    assert summary([], [])["wilson95"] == [0.0, 1.0]
    with pytest.raises(ValueError):
        summary([True], [])


def test_ratio_of_pairs():
    assert ratio_interval([20.0], [2.0]) == pytest.approx((10.0, 10.0, 10.0))
    ratio, low, high = ratio_interval([20.0, 40.0, 30.0], [2.0, 4.0, 3.0])  # a slow round slows both
    assert (ratio, low, high) == pytest.approx((10.0, 10.0, 10.0))
    ratio, low, high = ratio_interval([4.0, 1.0], [1.0, 1.0])  # logs 0 and 2 log 2: mean log 2, t(1) = 12.706
    assert ratio == pytest.approx(2.0)
    assert math.log(high / 2) == pytest.approx(12.706 * math.log(2), rel=1e-3) and low == pytest.approx(
        4 / high
    )
