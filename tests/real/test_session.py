"""Sessions: recorded whole, stopped by the robot, gone on with."""

import json
import threading
import time

import numpy as np
import pytest

from real.mcap_log import read_log
from real.replay import compare
from real.safety_node import RESET, STOP
from vla_rl.cli import main
from vla_rl.data.dataset import load_episodes
from vla_rl.keys import ACTION, STATE


def test_a_session_that_the_robot_stops_is_gone_on_with(janitor, reset, tmp_path, capfd):
    out = tmp_path / "session"
    command = ["robot", "session", "policy=expert", "episodes=2", f"out={out}", "env.max_episode_steps=60"]
    command.append("env.stop_patience=0")

    def stop_in_the_middle():
        until = time.monotonic() + 120
        while not any((out / "dataset.recording" / "live").glob("*.steps")) and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.5)
        janitor.pull(STOP, 30.0)

    stopper = threading.Thread(target=stop_in_the_middle)
    stopper.start()
    assert main(command) == 1
    stopper.join()
    said = capfd.readouterr().out
    assert "stopped: the arm is stopped: stop service" in said and "the same command goes on" in said
    assert main(command) == 1  # nothing clears a stop but its reset
    assert RESET in capfd.readouterr().out
    time.sleep(0.5)
    reset(janitor)
    time.sleep(0.3)
    assert main(command) == 0
    episodes = load_episodes(out / "dataset")
    assert len(episodes) == 2
    assert (
        episodes[0].length >= 3 and episodes[0].data["next.truncated"][-1]
    )  # the one that was stopped, up to there
    assert episodes[1].data["observation.images.agentview"].shape[1:] == (3, 96, 96)
    assert json.loads((out / "report.json").read_text())["episodes"] == 2
    logs = sorted(out.glob("log-*.mcap"))
    assert len(logs) >= 2
    topics = {topic for topic, _, _ in read_log(logs[-1])}
    assert {"/joint_states", "/vla_rl/target", "/agentview/image_raw/compressed", "/cube/pose"} <= topics
    for episode in episodes:
        assert episode.data[ACTION].shape[1] == 4 and episode.data[STATE].shape[1] == 11
    assert main(command) == 0  # complete: nothing moves again
    # the policy that played it, given what it saw, does the same again
    assert main(["robot", "replay", f"session={out}", "policy=expert"]) == 0
    replayed = json.loads((out / "replay/replay.json").read_text())["episodes"]
    assert [row["same"] for row in replayed] == [e.length for e in episodes]
    assert (out / "replay/episode-001.png").stat().st_size > 1000
    # another one shows where it would have done otherwise, and what it lacks is named
    elsewhere = episodes[1].data[ACTION].numpy() + 0.1 * (np.arange(episodes[1].length) >= 2)[:, None]
    row = compare(episodes[1], elsewhere)
    assert row["first_different"] == 2 and row["same"] == 2 and row["max"] == pytest.approx(0.1, abs=1e-5)
    capfd.readouterr()
    assert main(["robot", "replay", f"session={out}", "policy=smolvla_nano"]) == 2
    assert "observation.images.base" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["robot", "sessions"], "did you mean session"),
        (["robot", "session", "policy=expert"], "out=DIR"),
        (["robot", "replay", "policy=expert"], "session=DIR"),
        (
            ["robot", "session", "out=x", "env.robot=sim_arn", "policy=expert"],
            "unknown robot 'sim_arn': did you mean sim_arm",
        ),
        (["robot", "run", "launch=perhaps", "policy=expert"], "launch=perhaps"),
    ],
)
def test_wrong_words_are_one_line(words, said, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
