import re

import pytest

from vla_rl.report.plots import MOST_POINTS, interval_bars, line_plot, nice_ticks, number, thin


@pytest.mark.parametrize(
    "low, high, ticks",
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 60_000, [0, 20_000, 40_000, 60_000]),
        (-0.9, -0.3, [-0.8, -0.6, -0.4]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round_numbers_inside(low, high, ticks):
    assert nice_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize("low, high", [(0, 1e-9), (1e6, 1e6 + 1), (-7.3, 19.2), (0.1, 0.3), (0, 12345)])
def test_ticks_stay_inside_and_few(low, high):
    ticks = nice_ticks(low, high)
    slack = (high - low) * 1e-6
    assert 2 <= len(ticks) <= 7 and ticks[0] >= low - slack and ticks[-1] <= high + slack


def test_numbers_are_short():
    assert [number(v) for v in (0, 0.05, 12, 15_000, 2.5e6)] == ["0", "0.05", "12", "15k", "2.5M"]


def test_long_lines_are_thinned_by_means():
    line = [(float(i), float(i % 2)) for i in range(MOST_POINTS * 10)]
    kept = thin(line)
    assert len(kept) == MOST_POINTS and all(y == 0.5 for _, y in kept)
    assert thin([(0, 1), (1, float("nan")), (2, float("inf")), (3, 2)]) == [(0, 1), (3, 2)]


def coordinates(svg):
    return [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]+)"', svg).group(1).split()]


def test_a_line_goes_where_its_numbers_say():
    svg = line_plot("t", "x", {"a": [(0, 0.0), (5, 0.5), (10, 1.0)]}, y_range=(0, 1))
    (x0, y0), (x1, y1), (x2, y2) = coordinates(svg)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert x0 < x2 and y0 > y2, "up is more"


def test_flat_and_single_points_are_drawn():
    for line in ([(0, 2.0), (10, 2.0)], [(5, 0.0)]):
        svg = line_plot("t", "x", {"a": line})
        assert "nan" not in svg and coordinates(svg)
    assert line_plot("t", "x", {"a": []}) == ""


def test_marks_carry_their_interval():
    svg = line_plot("t", "x", {}, y_range=(0, 1), points=[(100, 0.5, 0.4, 0.6)], percent=True)
    assert "50.0 % (40-60 %)" in svg and svg.count('class="bar"') == 3


def test_bars_are_as_long_as_their_rates():
    svg = interval_bars([("before", 0.25, 0.2, 0.3), ("after", 1.0, 0.9, 1.0)])
    widths = [float(w) for w in re.findall(r'<rect[^>]*width="([\d.]+)"', svg)]
    assert widths[0] / widths[1] == pytest.approx(0.25, abs=0.01)


def test_names_are_escaped():
    svg = line_plot('"<t>"', "<x>", {"<a>": [(0, 1)]})
    assert "<t>" not in svg and "<x>" not in svg and "<a>" not in svg


def test_spans_are_shaded_where_they_are_and_numbered():
    spans = [(0, 0, "demonstrations"), (0, 50, "<return>"), (50, 100, "guided"), (200, 300, "outside")]
    svg = line_plot("t", "x", {"a": [(0, 0.0), (100, 1.0)]}, spans=spans)
    (x0, _), (x1, _) = coordinates(svg)
    found = [
        (float(x), float(w)) for x, w in re.findall(r'class="span.*?x="([\d.]+)".*?width="([\d.]+)"', svg)
    ]
    assert len(found) == 3 and found[0] == (x0, 1.0)
    assert found[1][0] == x0 and found[1][1] == pytest.approx((x1 - x0) / 2, abs=0.2)
    assert found[2][0] == pytest.approx((x0 + x1) / 2, abs=0.2)
    assert "<return>" not in svg and "outside" not in svg
