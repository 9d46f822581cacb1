"""The plan's arithmetic by hand, and costs measured on a small training."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "policies"))

from tiny import REACH, reach_base

from vla_rl.bench.scaling import run
from vla_rl.bench.scaling_plan import Costs, page, plan

COSTS = Costs(
    step=0.004,
    look=0.01,
    reset=0.001,
    acting=0.003,
    pack=0.001,
    take=0.001,
    bytes=1000.0,
    update=0.02,
    utd=0.5,
    publish=0.01,
    delta=50_000.0,
    horizon=10,
    question={1: 0.05, 8: 0.08},
    picture=30_000,
)


def test_robots_ask_for_what_their_clock_says():
    found = plan(COSTS, collectors=10, hz=10, learners=1, inference=2)
    assert found["wanted"] == 100
    load = found["load"]
    assert load["inference workers"] == pytest.approx(
        100 / 10 * 0.01 / 2
    )  # eight rows in 0.08 s are 0.01 s each
    assert load["learners, updates"] == pytest.approx(100 * 0.5 * 0.02)
    assert load["learners, taking frames"] == pytest.approx(0.1)
    assert load["collectors"] == pytest.approx(10 * 0.004)
    assert found["full first"] == "learners, updates" and found["reached"] == pytest.approx(100)
    assert found["frames MB/s"] == pytest.approx(0.1) and found["weights MB/s"] == pytest.approx(0.5)


def test_simulators_are_slowed_down_by_whatever_is_full():
    found = plan(COSTS, collectors=8, hz=None, learners=1, inference=1)
    assert found["wanted"] == pytest.approx(8 / (0.004 + 0.001 + 0.01 / 10 + 0.003 + 0.001))
    assert found["reached"] == pytest.approx(found["wanted"] / found["load"]["learners, updates"])
    twice = plan(COSTS, collectors=8, hz=None, learners=2, inference=1)
    assert twice["reached"] == pytest.approx(min(found["wanted"], 2 * found["reached"]))
    assert "| eight |" in page(COSTS, {"eight": found})


def test_costs_are_measured_here(tmp_path):
    words = [*REACH, "env.num_envs=1", "env.image_size=64", "demonstrations.episodes=0", "policy.horizon=4"]
    words += ["algorithm.hidden=[16,16]", "algorithm.batch_size=16", "algorithm.capacity=1000"]
    words += [f"policy.path={reach_base(tmp_path / 'act')}"]
    train = ",".join(f'"{word}"' for word in words)
    out = tmp_path / "out"
    assert run([f"train=[{train}]", "steps=60", "updates=3", "batches=[1,2]", f"out={out}"]) == 0
    found = json.loads((out / "results.json").read_text())
    costs = found["costs"]
    for name in ("step", "pack", "take", "update", "publish", "delta", "bytes"):
        assert costs[name] > 0, name
    assert costs["horizon"] == 4 and costs["picture"] == 0 and len(found["layouts"]) == 5
