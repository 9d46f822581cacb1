"""``vla-rl bench hil_robot``: a poor policy becomes a good one on the arm itself, and is then judged alone.

The simulated arm, its safety node, the acting process and the learner's are processes of their own that speak real DDS in
real time. A scripted teleoperator takes over when an episode takes too long; a latched stop fails its episode, and an
attendant resets it (``real.bench.attendant``).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from real.bench.attendant import Attendant
from real.bench.sim_arm import prepare
from real.commands import launched
from real.contract import load_contract
from vla_rl.config import compose
from vla_rl.runtime.metrics import read_metrics, write_json
from vla_rl.runtime.stages import call, trained


def run(overrides: list[str]) -> int:
    """Train and judge what is missing; writes ``results.json``."""
    config = compose("bench_hil_robot", overrides)
    work, out = Path(config.work), Path(config.out)
    given = compose("bench_sim_arm", [f"work={config.sim_arm}"])
    prepare(given)
    contract = load_contract("sim_arm")
    training, alone = work / f"robot-{config.seed}", work / f"alone-{config.seed}"
    with launched(contract, work / "nodes"), Attendant(contract):
        trained(training, arguments(config, given))
        if played(training) < config.steps:  # asked to go on with a shorter run
            (training / "final.json").unlink()
            shutil.rmtree(alone, ignore_errors=True)
            call(["train", f"resume={training}", f"run.steps={config.steps}"], work / "log.txt")
        if not (alone / "report.json").is_file():
            shutil.rmtree(alone, ignore_errors=True)
            robot = ["env.robot=sim_arm", "env.cameras=[]", "launch=false", f"out={alone}"]
            scenes = [f"episodes={config.episodes}", f"seed={config.scene}"]
            call(["robot", "run", *robot, *scenes, f"policy.path={training}"], work / "log.txt")
    return report(config, training, alone, out)


def played(training: Path) -> int:
    """Environment steps of a finished run."""
    return int(json.loads((training / "report.json").read_text())["env_steps"])


def arguments(config: Any, given: Any) -> list[str]:
    """Of the training run."""
    return [
        "experiment=bench",
        *("env=robot", "env.robot=sim_arm", "env.cameras=[]", "algorithm=residual_td3"),
        *(f"policy.path={config.sim_arm}/base", f"policy.horizon={given.horizon}"),
        f"demonstrations.episodes={config.demos}",
        *config.settings,
        *("teleop=overseer", f"teleop.patience={config.patience}"),
        *("run.learner=process", f"run.seed={config.seed}", f"run.steps={config.steps}"),
        # Judged by ``vla-rl robot run``; a run is over when there is a ``final.json``.
        *("run.checkpoint_every=1000", "run.final_episodes=1", f"run.final_seed={config.scene - 1}"),
    ]


def report(config: Any, training: Path, alone: Path, out: Path) -> int:
    """What the person at the arm would want to know."""
    judged = json.loads((alone / "report.json").read_text())
    base = json.loads((Path(config.sim_arm) / "base-simulation.json").read_text())
    cost = json.loads((training / "report.json").read_text())
    rows = read_metrics(training / "metrics.jsonl")
    kept = {
        k: judged[k]
        for k in ("successes", "episodes", "rate", "wilson95", "fault", "safety_stops", "late_p99_ms")
    }
    shares = [[r["step"], round(r["intervention"], 3)] for r in rows if "intervention" in r]
    stops = [int(r.get("safety_stops", 0)) for r in rows]
    # Counted from 0 again when a run is continued.
    total = sum(b for b, after in zip(stops, [*stops[1:], 0], strict=True) if after < b)
    result = {
        "rows": [
            {"name": "base_rate", "ours": base["rate"], "unit": "success rate"},
            {"name": "rate_alone", "ours": judged["rate"], "unit": "success rate"},
        ],
        "alone": kept,
        "training": {k: cost[k] for k in ("train_seconds", "env_steps", "episodes", "seed")}
        | {"safety_stops": total, "intervention_share": shares},
    }
    write_json(out / f"results-{config.seed}.json", result)
    low, high = judged["wilson95"]
    print(f"base {base['rate']:.0%}; alone after training {judged['rate']:.0%} ({low:.0%}-{high:.0%})")
    print(f"wrote {out / f'results-{config.seed}.json'}")
    return 0
