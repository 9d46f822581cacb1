"""The simulated controller's limits: nothing is too fast, and what is inside them passes as it is."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.command_limits import CommandLimits

V, A, STEP = np.array([1.5, 2.0]), np.array([8.0, 12.0]), 0.002


def test_a_motion_inside_the_limits_passes_unchanged():
    def motion(t):
        return tuple(np.array([f, f]) for f in (np.sin(t), np.cos(t), -np.sin(t)))

    limits = CommandLimits(V, A)
    limits.time, limits.motion = 0.0, motion(0.0)
    for k in range(1, 2000):
        followed = limits.follow(motion, k * STEP)
        assert all(np.array_equal(a, b) for a, b in zip(followed, motion(k * STEP), strict=True))


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-0.2, 0.2), st.floats(-0.2, 0.2)), min_size=1, max_size=6),
    st.floats(-1.5, 1.5),
)
def test_jumps_are_caught_up_with_at_the_limits(jumps, drift):
    limits = CommandLimits(V, A)
    limits.rest(np.zeros(2), 0.0)
    offset, time = np.zeros(2), 0.0
    for jump in jumps:
        offset = offset + np.array(jump)

        def asked(t, offset=offset):
            return offset + drift * t, np.full(2, drift), np.zeros(2)

        for _ in range(400):
            time += STEP
            before = limits.motion
            position, velocity, _ = limits.follow(asked, time)
            assert (np.abs(velocity) <= V + 1e-9).all()
            assert (np.abs(velocity - before[1]) <= A * STEP * 1.01 + 1e-9).all()
            assert (np.abs(position - before[0]) <= V * STEP + 1e-4).all()
    if abs(drift) < 1.0:  # it is there before the next jump
        assert np.allclose(limits.motion[0], asked(time)[0], atol=1e-3)


def test_a_clock_put_back_does_not_stop_it():
    limits = CommandLimits(V, A)
    limits.rest(np.zeros(2), 5.0)

    def asked(t):
        return np.full(2, 0.1), np.zeros(2), np.zeros(2)

    for k in range(400):
        limits.follow(asked, 1.0 + k * STEP)
    assert np.allclose(limits.motion[0], 0.1, atol=1e-4)
