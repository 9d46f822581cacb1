"""The simulated controller goes through the points it is given, smoothly, and rests at the last."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.trajectory_player import TrajectoryPlayer, spline

NUMBER = st.floats(-2, 2)


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[NUMBER] * 6), st.sampled_from([1, 3, 5]), st.floats(0.01, 2))
def test_a_spline_meets_both_ends(values, order, duration):
    start, end = (tuple(np.array([v]) for v in values[i : i + 3]) for i in (0, 3))
    for time, wanted in ((0.0, start), (duration, end)):
        got = spline(start, end, duration, time, order)
        for k in range({1: 1, 3: 2, 5: 3}[order]):
            assert np.allclose(got[k], wanted[k], atol=1e-6 * max(1, duration**-2))


def test_it_follows_a_motion_given_in_points():
    times = np.linspace(0.01, 1, 100)
    player = TrajectoryPlayer(np.array([0.0]))
    position, velocity, acceleration = (f(times)[:, None] for f in (np.sin, np.cos, lambda t: -np.sin(t)))
    player.follow(times, position, velocity, acceleration, 0.0)
    for time in np.linspace(0.02, 0.99, 333):
        assert np.allclose(
            [x[0] for x in player.at(time)], [np.sin(time), np.cos(time), -np.sin(time)], atol=1e-5
        )
    assert [x[0] for x in player.at(5.0)] == [position[-1, 0], 0, 0]


def test_a_new_trajectory_begins_where_the_old_one_is():
    player = TrajectoryPlayer(np.zeros(2))
    one = np.array([[1.0, -1.0]])
    player.follow([1.0], one, 0 * one, 0 * one, 0.0)
    before = player.at(0.5)
    player.follow([0.2, 2.0], np.array([[9.0, 9.0], [0.0, 0.0]]), np.zeros((2, 2)), np.zeros((2, 2)), 0.5)
    for a, b in zip(before, player.at(0.5), strict=True):
        assert np.allclose(a, b)
    assert (
        np.abs([player.at(t)[0] for t in np.linspace(0.5, 2, 50)]).max() < 2
    )  # the point in the past is dropped
    assert np.allclose(player.at(2.0)[0], 0)


@pytest.mark.parametrize("late", [0.0, 3.0])
def test_positions_alone_are_reached(late):
    player = TrajectoryPlayer(np.zeros(1))
    player.follow([1.0], np.array([[0.3]]), None, None, late)
    assert np.allclose(player.at(late + 1.0)[0], 0.3)
