"""Streams, services and what is said when they do not come."""

import threading
import time

import pytest
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Header

from real.ros2 import Link, Ticker, seconds, stamp_of
from vla_rl.errors import UserError


@pytest.fixture
def links():
    made = []

    def make(name):
        made.append(Link(name))
        return made[-1]

    yield make
    for link in made:
        link.close()


def test_the_newest_message_has_the_age_of_its_stamp(links):
    here, there = links("here"), links("there")
    stream, publisher = here.listen("/states", JointState), there.publisher("/states", JointState)
    assert stream.age() == float("inf")
    until = time.monotonic() + 10
    while stream.newest is None and time.monotonic() < until:
        stamp = stamp_of(there.now() - 0.3, type(there.stamp()))
        publisher.publish(JointState(header=Header(stamp=stamp), name=["a"]))
        time.sleep(0.05)
    assert 0.3 <= stream.age() < 2.0
    assert stream.newest.message.name == ["a"]
    ahead = stamp_of(there.now() + 5, type(there.stamp()))  # a clock that has jumped
    count = stream.count
    while stream.newest.stamp < there.now() + 2 and time.monotonic() < until:
        publisher.publish(JointState(header=Header(stamp=ahead)))
        stream.wait(count, 0.2)
    assert stream.age() < 0


@pytest.mark.parametrize("reliable", [True, False])
def test_best_effort_and_reliable_publishers_are_heard(links, reliable):
    here, there = links("here"), links("there")
    kind = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
    profile = QoSProfile(depth=1, reliability=kind, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    publisher = there.node.create_publisher(Bool, "/flag", profile)
    stream = here.listen("/flag", Bool)
    until = time.monotonic() + 10
    while stream.newest is None and time.monotonic() < until:
        publisher.publish(Bool(data=True))
        stream.wait(0, 0.05)
    assert stream.newest.message.data


def test_it_closes_quietly_while_messages_come(links, monkeypatch):
    """rclpy's executor, shut down from another thread, destroys what a callback under way still uses."""
    raised = []
    monkeypatch.setattr(threading, "excepthook", lambda args: raised.append(args.exc_value))
    publisher, over = links("there").publisher("/flag", Bool), threading.Event()

    def talk():
        while not over.wait(0.0005):
            publisher.publish(Bool())

    talker = threading.Thread(target=talk)
    talker.start()
    try:
        for _ in range(15):
            here = Link("here")
            try:
                assert here.listen("/flag", Bool).wait(0, 10.0)
            finally:
                here.close()
    finally:
        over.set()
        talker.join()
    assert not raised


def test_a_subscriber_that_wants_more_than_we_give_is_reported(links):
    here, there = links("here"), links("there")
    wants = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    there.node.create_subscription(Bool, "/flag", lambda _: None, wants)
    here.publisher("/flag", Bool)
    until = time.monotonic() + 10
    while not here.problems() and time.monotonic() < until:
        time.sleep(0.05)
    assert "/flag" in here.problems()[0] and "durability" in here.problems()[0]


def test_a_silent_stream_is_named_with_the_reason(links):
    here, there = links("here"), links("there")
    nobody, silent, other = (here.listen(f"/{n}", JointState) for n in ("nobody", "silent", "other"))
    there.publisher("/silent", JointState)
    there.publisher("/other", Bool)
    time.sleep(1.0)
    with pytest.raises(UserError) as error:
        here.require([nobody, silent, other], 0.2)
    text = str(error.value)
    assert "/nobody has no publisher" in text
    assert "/silent has a publisher (there) that sends nothing" in text
    assert "/other carries std_msgs/msg/Bool, wanted sensor_msgs/msg/JointState" in text


def test_two_commanders_are_refused(links):
    here, there = links("here"), links("there")
    here.publisher("/command", Bool)
    here.alone("/command", own=1)
    there.publisher("/command", Bool)
    with pytest.raises(UserError, match="there publishes /command too"):
        here.alone("/command", settle=10.0, own=1)


def test_a_trigger_answers_or_says_why_not(links):
    here, there = links("here"), links("there")
    there.trigger("/good", lambda: (True, "done"))
    there.trigger("/bad", lambda: (False, "too hot"))
    assert here.pull("/good", 10.0) == "done"
    with pytest.raises(UserError, match="/bad refuses: too hot"):
        here.pull("/bad", 10.0)
    with pytest.raises(UserError, match="nobody serves /nowhere"):
        here.pull("/nowhere", 0.2)


def test_a_period_is_kept_and_a_missed_one_is_skipped(links):
    ticker = Ticker(links("here"), 0.02)
    start = time.monotonic()
    for _ in range(10):
        ticker.wait()
    assert time.monotonic() - start >= 10 * 0.02 - 1e-3
    time.sleep(0.09)
    ticker.wait()
    assert ticker.missed >= 3


def test_a_period_missed_in_the_sleep_itself_is_known_at_once(links, monkeypatch):
    ticker = Ticker(links("here"), 0.02)
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds + 0.07))
    assert ticker.wait() > 0.06
    assert ticker.missed == 3


@pytest.mark.parametrize("time_", [0.0, 1.25, 1763942400.123456, -0.5])
def test_stamps_survive(time_):
    from builtin_interfaces.msg import Time

    assert abs(seconds(stamp_of(time_, Time)) - time_) < 1e-6
