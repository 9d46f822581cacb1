"""Shares from sampled stacks, and a real training looked at from outside."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "policies"))

from tiny import REACH, reach_base

from vla_rl.bench.profile import run, shares_of


def test_shares_by_hand():
    learn = "main (cli.py:1);Trainer.learn (vla_rl/train.py:1)"
    step = f"{learn};Collector.step (vla_rl/rollout/collector.py:9)"
    lines = [
        f"{step};VlaVectorEnv.step_wait (vla_rl/environment.py:1) 50",
        f"{step};OpenLoop.act (vla_rl/policies/open_loop.py:1) 20",
        f"{step};_update (vla_rl/train.py:3);make_updates (vla_rl/algorithms/base.py:7) 20",
        f"{step} 5",
        f"{learn} 5",
        "_bootstrap (threading.py:1) 900",
    ]
    found = shares_of(lines)
    assert found == pytest.approx(
        {"pictures": 0, "simulator": 0.5, "policy": 0.2, "updates": 0.2, "collector": 0.05, "rest": 0.05}
    )


def test_a_training_is_looked_at_while_it_runs(tmp_path):
    base = reach_base(tmp_path / "gaussian", "gaussian_nano")
    words = [*REACH, "env.num_envs=2", f"policy.path={base}", "policy.horizon=4"]
    words += ["algorithm=dppo", "demonstrations=none", "algorithm.decisions=40", "algorithm.batch_size=40"]
    words += ["run.log_every=50", "run.base_episodes=0"]
    shared = ",".join(f'"{word}"' for word in words)
    out = tmp_path / "out"
    asked = ["runs={dppo:[]}", "only=[dppo]", "step=100", "seconds=3", f"work={tmp_path / 'work'}"]
    assert run([f"shared=[{shared}]", *asked, f"out={out}"]) == 0
    shares = json.loads((out / "results.json").read_text())["dppo"]
    assert (
        shares["simulator"] > 0.05 and shares["updates"] > 0.01 and sum(shares.values()) == pytest.approx(1)
    )
    picture = (out / "dppo.svg").read_text()
    assert picture.startswith("<?xml") and str(tmp_path / "work") not in picture
    assert "dppo.svg" in (out / "README.md").read_text()
