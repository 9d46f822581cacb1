"""What came over the wire is in the file, also when the process was killed."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseWithCovarianceStamped
from mcap.records import Channel
from sensor_msgs.msg import CompressedImage, JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from real.mcap_log import McapLog, definition, read_log, type_name
from real.ros2 import Link
from vla_rl.errors import UserError

STATES = JointState(name=["a", "b"], position=[1.5, -2.0])
POINT = JointTrajectoryPoint(positions=[0.1], velocities=[0.2])


@pytest.fixture
def links():
    made = [Link("writer"), Link("talker")]
    yield made
    for link in made:
        link.close()


def fill(log, talker, messages, count=5):
    publishers = {topic: talker.publisher(topic, type(message)) for topic, message in messages.items()}
    until = time.monotonic() + 10
    while log.count < count * len(messages) and time.monotonic() < until:
        for topic, publisher in publishers.items():
            publisher.publish(messages[topic])
        time.sleep(0.02)


def test_what_comes_while_topics_are_still_added_waits(links, tmp_path, monkeypatch):
    """The writer's buffer belongs to one thread: a message in the middle of a channel's record broke both."""
    writer, talker = links
    publisher = talker.publisher("/states", JointState)
    stop = threading.Event()

    def talk():
        while not stop.is_set():
            publisher.publish(STATES)
            time.sleep(0.001)

    real, busy = Channel.write, []

    def slowly(self, builder):
        busy.append(True)
        time.sleep(0.2)
        real(self, builder)
        busy.pop()

    kept = McapLog._write

    def watched(self, channel, message):
        assert not busy
        kept(self, channel, message)

    monkeypatch.setattr(Channel, "write", slowly)
    monkeypatch.setattr(McapLog, "_write", watched)
    thread = threading.Thread(target=talk)
    thread.start()
    try:
        topics = {"/states": JointState} | {f"/other{i}": JointState for i in range(4)}
        log = McapLog(writer, tmp_path / "log.mcap", topics)
        until = time.monotonic() + 10
        while log.count < 5 and time.monotonic() < until:
            time.sleep(0.01)
        log.close()
    finally:
        stop.set()
        thread.join()
    assert log.count >= 5 and len(list(read_log(tmp_path / "log.mcap"))) == log.count


def test_messages_are_read_back_as_they_were(links, tmp_path):
    writer, talker = links
    status = DiagnosticStatus(level=b"\x01", name="arm", values=[KeyValue(key="k", value="v")])
    messages = {
        "/states": STATES,
        "/command": JointTrajectory(joint_names=["a"], points=[POINT, POINT]),
        "/picture": CompressedImage(format="jpeg", data=b"\x01\x02\x03"),
        "/health": DiagnosticArray(status=[status]),
        "/pose": PoseWithCovarianceStamped(),
    }
    path = tmp_path / "deep" / "log.mcap"
    log = McapLog(writer, path, {topic: type(message) for topic, message in messages.items()})
    fill(log, talker, messages)
    log.sync()
    log.close()
    log.close()
    found = list(read_log(path))
    assert {topic for topic, _, _ in found} == set(messages)
    times = [time_ for _, time_, _ in found]
    assert times == sorted(times) and abs(times[-1] - time.time()) < 60
    last = {topic: message for topic, _, message in found}
    assert list(last["/states"].position) == [1.5, -2.0] and list(last["/states"].name) == ["a", "b"]
    assert [list(p.velocities) for p in last["/command"].points] == [[0.2], [0.2]]
    assert bytes(last["/picture"].data) == b"\x01\x02\x03"
    assert last["/health"].status[0].values[0].value == "v"
    assert len(last["/pose"].pose.covariance) == 36
    with pytest.raises(UserError, match="exists"):
        McapLog(writer, path, {})


def test_a_killed_writer_leaves_what_it_had_flushed(links, tmp_path):
    path = tmp_path / "log.mcap"
    code = (
        "import sys, time; from pathlib import Path; from sensor_msgs.msg import JointState\n"
        "from real.ros2 import Link; from real.mcap_log import McapLog\n"
        "log = McapLog(Link('victim'), Path(sys.argv[1]), {'/states': JointState})\n"
        "while log.count < 20: time.sleep(0.01)\n"
        "log.sync(); print('synced', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, env=dict(os.environ)
    )
    try:
        publisher = links[1].publisher("/states", JointState)
        os.set_blocking(process.stdout.fileno(), False)
        until = time.monotonic() + 30
        while not process.stdout.read() and time.monotonic() < until:
            publisher.publish(STATES)
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not path.exists()
    part = path.with_name("log.mcap.part")
    whole = list(read_log(part))
    assert len(whole) >= 20 and list(whole[0][2].position) == [1.5, -2.0]
    part.write_bytes(part.read_bytes()[:-7])  # a power cut in the middle of a record
    assert len(whole) - 2 <= len(list(read_log(part))) < len(whole) + 1


def test_a_full_disk_is_reported_and_stops_nothing(links, tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    log = McapLog(links[0], tmp_path / "log.mcap", {"/states": JointState})
    log._file.close()
    log._file = log._writer._Writer__stream = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    fill(log, links[1], {"/states": STATES}, 1)
    with pytest.raises(UserError, match="No space left"):
        log.sync()


def test_definitions_name_what_they_are_made_of():
    text = definition(JointTrajectory)
    assert type_name(JointTrajectory) == "trajectory_msgs/msg/JointTrajectory"
    assert "string[] joint_names" in text and "trajectory_msgs/JointTrajectoryPoint[] points" in text
    assert text.count("MSG: builtin_interfaces/Time") == 1 and "MSG: builtin_interfaces/Duration" in text


def test_other_files_are_refused(tmp_path):
    (tmp_path / "x.mcap").write_text("hello")
    with pytest.raises(UserError, match="no MCAP"):
        list(read_log(tmp_path / "x.mcap"))
