"""Whatever is asked for, at whatever moment: no limit of the contract is exceeded, and standstill is always near."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from real.contract import load_contract
from real.kinematics import ArmModel
from real.safety import Mode, SafetyFilter
from vla_rl.errors import UserError

CONTRACT = load_contract("sim_arm")
MODEL = ArmModel(CONTRACT)
LIMITS = CONTRACT.limits
LOWER, UPPER = np.array(LIMITS.lower), np.array(LIMITS.upper)
HOME = np.array(CONTRACT.home)
DT = 1 / CONTRACT.command.rate_hz
FILTER = SafetyFilter(CONTRACT, MODEL)


def startable(count, seed=0):
    """Postures the filter starts from, all over the workspace, at its edges and near self-collision too."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < count:
        posture = np.clip(HOME + rng.normal(0, 0.6, 7), LOWER, UPPER)
        try:
            FILTER.reset(posture)
        except UserError:
            continue
        found.append(posture)
    return found


POSTURES = startable(200)


class Arm:
    """A filter with an arm that follows it exactly, and everything it was commanded."""

    def __init__(self, posture):
        self.filter, self.now, self.age = FILTER, 0.0, 0.0
        self.filter.reset(posture)
        rest = np.zeros(7)
        self.position, self.velocity, self.acceleration = [posture], [rest], [rest]

    def tick(self, count=1):
        for _ in range(count):
            self.now += DT
            setpoint = self.filter.tick(self.now, self.position[-1], self.age)
            self.position.append(setpoint.position)
            self.velocity.append(setpoint.velocity)
            self.acceleration.append(setpoint.acceleration)
        return setpoint

    def check(self):
        position, velocity, acceleration = (
            np.array(x) for x in (self.position, self.velocity, self.acceleration)
        )
        assert np.isfinite(position).all()
        assert (position >= LOWER - 1e-6).all() and (position <= UPPER + 1e-6).all()
        assert (np.abs(velocity) <= np.array(LIMITS.velocity) + 1e-6).all()
        assert (np.abs(acceleration) <= np.array(LIMITS.acceleration) + 1e-6).all()
        # From the positions themselves too: the stated derivatives must be the true ones.
        assert (np.abs(np.diff(position, axis=0)) / DT <= np.array(LIMITS.velocity) + 1e-6).all()
        assert (np.abs(np.diff(velocity, axis=0)) / DT <= np.array(LIMITS.acceleration) + 1e-6).all()
        assert (np.abs(np.diff(acceleration, axis=0)) / DT <= np.array(LIMITS.jerk) + 1e-4).all()
        np.testing.assert_allclose(
            np.diff(position, axis=0), DT * (velocity[1:] + velocity[:-1]) / 2, atol=max(LIMITS.jerk) * DT**3
        )
        tool, speed = MODEL.motion(position, velocity)
        assert (np.linalg.norm(speed, axis=1) <= CONTRACT.tool.max_speed + 1e-6).all()
        assert min(MODEL.clearance(q)[0] for q in position) >= CONTRACT.collision.margin - 1e-6
        assert (tool >= np.array(CONTRACT.tool.low) - 1e-6).all()
        assert (tool <= np.array(CONTRACT.tool.high) + 1e-6).all()


def target(arm, kind, rng):
    """A target of some kind; each joint of a ``near`` one as far as the filter lets it be."""
    here = arm.position[-1]
    if kind == "nan":
        return np.where(rng.random(7) < 0.3, rng.choice([np.nan, np.inf, -np.inf]), here)
    if kind == "far":
        return here + rng.normal(0, 3, 7)
    if kind == "edge":
        return here + np.clip(np.where(rng.random(7) < 0.5, LOWER, UPPER) - here, -LIMITS.step, LIMITS.step)
    if kind == "small":
        return here + rng.normal(0, 0.02, 7)
    return here + rng.uniform(-LIMITS.step, LIMITS.step, 7)


KINDS = ["near", "near", "edge", "edge", "small", "far", "nan", "none", "old", "stop", "ahead"]


def run(posture, kinds, seed, ticks):
    arm, rng = Arm(POSTURES[posture]), np.random.default_rng(seed)
    for kind in kinds:
        arm.age = 0.0
        if kind == "old":
            arm.age = 1.0
        elif kind == "stop":
            arm.filter.stop("pressed")
        elif kind == "none":
            arm.now += 1.0  # nobody has sent anything for a second
        elif kind == "ahead":
            arm.now -= 0.5  # the clock jumps back
        else:
            arm.filter.aim(target(arm, kind, rng), arm.now)
        arm.tick(int(rng.integers(1, ticks + 1)))
    arm.check()


STREAMS = dict(
    posture=st.integers(0, len(POSTURES) - 1),
    kinds=st.lists(st.sampled_from(KINDS), min_size=2, max_size=7),
    seed=st.integers(0, 2**32 - 1),
)


@pytest.mark.timeout(900)  # a hundred seconds where nothing else runs
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(**STREAMS)
def test_no_stream_exceeds_a_limit(posture, kinds, seed):
    run(posture, kinds, seed, ticks=6)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(**(STREAMS | {"kinds": st.lists(st.sampled_from(KINDS[:6]), min_size=15, max_size=25)}))
def test_no_long_stream_exceeds_a_limit(posture, kinds, seed):
    run(posture, kinds, seed, ticks=12)


def moving(seed=1, ticks=20):
    """An arm on its way."""
    arm, rng = Arm(HOME), np.random.default_rng(seed)
    for _ in range(ticks // 4):
        assert not arm.filter.aim(
            arm.position[-1] + rng.uniform(0, 0.3, 7) * [1, -0.2, 1, 1, 1, 0, 1], arm.now
        )
        arm.tick(4)
    assert np.abs(arm.velocity[-1]).max() > 0.2
    return arm


def standstill(arm):
    """Seconds until it stands."""
    began = arm.now
    while np.abs(arm.velocity[-1]).max() > 1e-9:
        arm.tick()
        assert arm.now - began < 2
    return arm.now - began


def on_the_edge(direction):
    """The last posture from home along ``direction`` [7] that the filter starts from, to a hair."""
    inside, outside = 0.0, 0.0
    while outside <= inside:
        try:
            FILTER.reset(HOME + (inside + 0.05) * direction)
            inside += 0.05
        except UserError:
            outside = inside + 0.05
    for _ in range(40):
        middle = (inside + outside) / 2
        try:
            FILTER.reset(HOME + middle * direction)
            inside = middle
        except UserError:
            outside = middle
    return HOME + inside * direction


@pytest.mark.parametrize("seed", range(14))
def test_an_arm_at_rest_on_an_edge_comes_back(seed):
    """A slow machine found it: within a hair of its workspace, or of a joint's end, it could never move again."""
    rng = np.random.default_rng(seed)
    direction = np.eye(7)[seed // 2] * (-1) ** seed if seed < 10 else rng.normal(size=7)
    arm = Arm(on_the_edge(direction))
    for _ in range(800):
        gap = HOME - arm.filter.position
        arm.filter.aim(arm.filter.position + gap * min(1.0, 0.2 / max(np.abs(gap).max(), 1e-9)), arm.now)
        arm.tick()
    assert np.abs(arm.filter.position - HOME).max() < 1e-3
    arm.check()


def test_it_arrives():
    arm = Arm(HOME)
    goal = HOME + [0.2, 0.1, -0.1, 0.2, 0.1, -0.1, 0.3]
    for _ in range(20):
        arm.filter.aim(goal, arm.now)
        setpoint = arm.tick(5)
    assert setpoint.mode is Mode.RUN and not setpoint.reason
    np.testing.assert_allclose(setpoint.position, goal, atol=1e-6)


def test_a_stop_is_latched_until_reset():
    arm = moving()
    fastest = np.abs(arm.velocity[-1]) / LIMITS.acceleration + 2 * np.array(LIMITS.acceleration) / LIMITS.jerk
    arm.filter.stop("button")
    assert standstill(arm) <= fastest.max() + 2 * DT
    where = arm.position[-1]
    for _ in range(20):
        arm.filter.aim(where + 0.1, arm.now)
        setpoint = arm.tick()
    assert setpoint.mode is Mode.STOPPED and setpoint.reason == "button"
    np.testing.assert_allclose(setpoint.position, where, atol=1e-12)
    arm.filter.stop("another")
    assert arm.tick().reason == "button"
    arm.filter.reset(where)
    assert arm.tick().mode is Mode.HOLD  # nothing is done before somebody asks anew
    arm.filter.aim(where + 0.1, arm.now)
    assert arm.tick().mode is Mode.RUN
    arm.check()


@pytest.mark.parametrize("what", ["target", "observation"])
def test_something_stale_holds_and_goes_on_when_fresh(what):
    arm = moving()
    if what == "observation":
        arm.age = CONTRACT.joint_states.max_age + 0.01
    else:
        arm.now += CONTRACT.command.timeout
    setpoint = arm.tick()
    assert setpoint.mode is Mode.HOLD
    assert ("joint states are 110 ms old" if what == "observation" else "no target for 2") in setpoint.reason
    standstill(arm)
    arm.age = 0.0
    arm.filter.aim(arm.position[-1] + 0.05, arm.now)
    assert arm.tick().mode is Mode.RUN
    arm.check()


def test_measurements_that_are_not_finite_hold():
    arm = moving()
    arm.filter.aim(arm.position[-1], arm.now)
    setpoint = arm.filter.tick(arm.now + DT, np.full(7, np.nan), 0.0)
    assert setpoint.mode is Mode.HOLD and setpoint.reason == "joint states are not finite"


def test_every_setpoint_carries_the_way_to_standstill():
    arm = moving()
    brake = arm.filter.brake
    position, velocity, acceleration = brake.at(0.0)
    np.testing.assert_allclose(position, arm.position[-1], atol=1e-9)
    np.testing.assert_allclose(velocity, arm.velocity[-1], atol=1e-9)
    arm.filter.stop("gone")
    expected = [brake.at((k + 1) * DT)[0] for k in range(30)]
    arm.tick(30)
    np.testing.assert_allclose(arm.position[-30:], expected, atol=1e-9)
    assert not brake.at(10.0)[1].any()


def test_an_arm_that_does_not_follow_is_stopped():
    arm = moving()
    arm.filter.aim(arm.position[-1] + 0.3, arm.now)
    stuck = arm.position[-1] - [0, 0, 0, LIMITS.tracking + 0.1, 0, 0, 0]
    setpoint = arm.filter.tick(arm.now + DT, stuck, 0.0)
    assert setpoint.mode is Mode.STOPPED and "panda_joint4 is 0.2" in setpoint.reason


def test_a_late_measurement_is_compared_with_the_command_of_its_time():
    arm = moving()
    arm.age = 0.08
    for _ in range(30):
        arm.now += DT
        arm.filter.aim(arm.position[-1] + 0.2, arm.now)
        late = arm.position[max(0, len(arm.position) - 9)]
        setpoint = arm.filter.tick(arm.now, late, arm.age)
        arm.position.append(setpoint.position)
        assert setpoint.mode is not Mode.STOPPED, setpoint.reason


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (np.full(7, np.nan), "not finite"),
        (HOME + [0, 0, 0.6, 0, 0, 0, 0], "target of panda_joint3 is 0.60 away"),
        (HOME[:6], "shape"),
    ],
)
def test_refused_targets_are_said_and_counted(target, reason):
    arm = Arm(HOME)
    before = arm.filter.rejected
    assert reason in arm.filter.aim(target, 0.0)
    assert arm.filter.rejected == before + 1
    assert arm.tick().mode is Mode.HOLD


@pytest.mark.parametrize(
    ("posture", "message"),
    [
        (HOME + [3.0, 0, 0, 0, 0, 0, 0], "panda_joint1 is at 3.000, outside -2.8"),
        (HOME * [1, 1, 1, 0.2, 1, 0.6, 1], "cannot start here: the tool would leave its workspace"),
    ],
)
def test_a_bad_start_is_refused(posture, message):
    with pytest.raises(UserError, match=message):
        FILTER.reset(posture)


def test_ticking_before_reset_is_an_error():
    with pytest.raises(RuntimeError, match="reset"):
        SafetyFilter(CONTRACT, MODEL).tick(0.0, HOME, 0.0)
