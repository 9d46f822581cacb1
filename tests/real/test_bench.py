"""The robot benchmarks: what they measure is what happened, and they find what is wrong."""

import json

import numpy as np
import pytest

from real.bench.control import braking, held_after, stopped_after
from real.bench.evidence import shorter, violations
from real.bench.recorder import columns, read
from real.contract import load_contract
from vla_rl.cli import main

CONTRACT = load_contract("sim_arm")
HOME = np.array(CONTRACT.home)


def stream(seconds=2.0, dt=0.01):
    """Commands (rows of ``columns``) and the motion of an arm that swings its first joint, well inside all limits."""
    time = np.arange(0, seconds, dt)
    q, v, a = (np.tile(x, (len(time), 1)) for x in (HOME, np.zeros(7), np.zeros(7)))
    q[:, 0], v[:, 0], a[:, 0] = 0.2 * np.sin(2 * time), 0.4 * np.cos(2 * time), -0.8 * np.sin(2 * time)
    commands = np.column_stack([time - 0.02, time, time + 0.3, q, v, a])
    return commands, np.column_stack([time, q, q, v, np.zeros((len(time), 2))])


@pytest.mark.parametrize(
    ("column", "value", "found"),
    [
        ("position3", 0.5, "commanded_position"),
        ("velocity2", 1.7, "commanded_velocity"),
        ("acceleration1", -7.5, "commanded_acceleration"),
        ("acceleration4", 11.0, "commanded_jerk"),
        ("position1", 1.6, "commanded_workspace"),
        ("velocity0", 1.4, "commanded_tool_speed"),
        ("position5", np.nan, "not_finite"),
    ],
)
def test_every_exceeded_limit_is_found(tmp_path, column, value, found):
    commands, motion = stream()
    commands.tofile(tmp_path / "commands.f64")
    motion.tofile(tmp_path / "motion.f64")
    assert not any(violations(CONTRACT, tmp_path).values())
    commands[100, columns(7).index(column)] = value
    commands.tofile(tmp_path / "commands.f64")
    assert violations(CONTRACT, tmp_path)[found] >= 1
    commands, motion = stream()
    commands.tofile(tmp_path / "commands.f64")
    motion[50, 1 + 14 + 2] = 1.6  # of the arm itself
    motion.tofile(tmp_path / "motion.f64")
    assert violations(CONTRACT, tmp_path)["simulated_velocity"] == 1


def test_lost_steps_are_counted():
    rows = np.array([[0.1 * k, 0, k] for k in range(10)] + [[2 + 0.1 * k, 1, k] for k in range(6)], float)
    assert shorter(rows, [10, 4]) == []  # of the second the newest finished step may be lost
    assert shorter(rows, [10, 3]) == [{"episode": 1, "kept": 3, "finished": 4, "lost": 1}]
    assert shorter(rows, [10])[0]["lost"] == 4


def test_a_stop_is_timed_against_the_braking_that_limits_ask_for():
    speed, rate = np.zeros(7), np.array(CONTRACT.limits.acceleration)
    speed[0] = 0.8
    needed = braking(CONTRACT, speed, np.zeros(7))
    assert needed == pytest.approx(0.8 / rate[0] + rate[0] / CONTRACT.limits.jerk[0], rel=1e-6)
    due = np.arange(0, 1, 0.01)
    velocity = np.outer(np.clip((0.5 + needed + 0.05 - due) / needed, 0, 1), speed)
    velocity[due >= 0.5 + needed + 0.05 - 1e-9] = 0
    table = {"due": due, "velocity": velocity, "acceleration": np.zeros((len(due), 7))}
    took = stopped_after(CONTRACT, table, 0.5)
    assert took["reaction_ms"] == pytest.approx(50, abs=15)


def test_a_hold_is_timed_from_the_moment_the_stream_was_too_old():
    newest = {"joint_states": 10.0, "target": 10.05, "agentview": 9.9}
    events = [{"time": 10.13, "mode": "hold", "reason": "", "newest": newest}]
    assert held_after(CONTRACT, events, "joint states", 9.0)["hold_ms"] == pytest.approx(30)
    assert held_after(CONTRACT, events, "camera", 9.0)["hold_ms"] == 0.0


@pytest.mark.timeout(240)
def test_control_is_measured_between_real_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("ROS_DOMAIN_ID", "0")  # beside the arm of the other tests
    settings = ["seconds=2", "stops=1", "stales=3", "vla=null", f"out={tmp_path}", f"work={tmp_path}/nodes"]
    assert main(["bench", "control", *settings]) in (0, 1)  # times are judged by the benchmark, not here
    report = json.loads((tmp_path / "results.json").read_text())
    rows = {row["name"]: row["ours"] for row in report["rows"]}
    assert set(rows) == {"period_p99_ms", "period_max_ms", "stop_ms", "stale_hold_ms"}
    assert 120 < report["commands"] < 250 and len(report["stops"]) == 1
    assert [s["stream"] for s in report["stales"]] == ["joint states", "camera", "target"]
    assert all(s["silent_ms"] > 90 for s in report["stales"])
    assert (tmp_path / "period.png").stat().st_size > 1000
    table, events = read(tmp_path / "nodes", 7)
    assert np.abs(np.diff(table["due"])).max() < 1.0
    assert {"run", "hold", "stopped"} <= {event["mode"] for event in events}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bench", "control", "minutes=3"], "unknown configuration key 'minutes'"),
        (["bench", "faults", "+faults.kill_everything=1"], "faults.kill_everything"),
        (["bench", "contrl"], "did you mean control"),
    ],
)
def test_wrong_words_are_one_line(words, said, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
