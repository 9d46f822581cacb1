"""``vla-rl bench sim_arm``: how much of a policy's success in simulation is left over DDS, in real time.

A base is cloned from a few noisy demonstrations, improved by residual RL in lockstep simulation, and then run twice on
the same scenes: there, and on the simulated arm as a robot, in a process of its own, behind its safety node.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from vla_rl.config import compose
from vla_rl.runtime.metrics import write_json
from vla_rl.runtime.stages import SMALL, call, cloned


def run(overrides: list[str]) -> int:
    """Train what is missing, run on both; exit code 1: more than 5 points apart."""
    config = compose("bench_sim_arm", overrides)
    work, out = Path(config.work), Path(config.out)
    env, policy, scenes = prepare(config)
    log = work / "log.txt"
    if not (work / "residual/final.json").is_file():
        call(["train", *training(config, work, env, policy)], log)
    learned = [f"policy.path={work}/residual"]
    if not (work / "simulation.json").is_file():
        call(["eval", *env, "env.num_envs=8", *learned, *scenes, f"json={work}/simulation.json"], log)
    if not (work / "robot/report.json").is_file():
        robot = ["env.robot=sim_arm", "env.cameras=[]", f"out={work}/robot"]
        call(["robot", "run", *robot, *learned, *scenes], log)
    return report(work, out)


def prepare(config: Any) -> tuple[list[str], list[str], list[str]]:
    """Demonstrations, a base and its success; returns the overrides of environment, base policy and scenes."""
    work = Path(config.work)
    env = ["env=sim_arm", "env.num_workers=0", "env.cameras=[]"]
    log = work / "log.txt"
    if not (work / "demonstrations/meta/info.json").is_file():
        shown = [f"policy.noise={config.noise}", f"episodes={config.demos}", f"out={work}/demonstrations"]
        call(["record", *env, "env.num_envs=8", "policy=expert", *shown], log)
    cloned(work, [f"train.steps={config.bc_steps}", "train.overrides={" + SMALL + "}"])
    policy = [f"policy.path={work}/base", f"policy.horizon={config.horizon}"]
    scenes = [f"episodes={config.episodes}", f"seed={config.scene}"]
    if not (work / "base-simulation.json").is_file():
        call(["eval", *env, "env.num_envs=8", *policy, *scenes, f"json={work}/base-simulation.json"], log)
    return env, policy, scenes


def training(config: Any, work: Path, env: list[str], policy: list[str]) -> list[str]:
    """Arguments of the residual run, or those that continue it."""
    if (work / "residual/config.yaml").is_file():
        return [f"resume={work}/residual"]
    return [
        "experiment=bench",
        *env,
        "env.num_envs=8",
        "algorithm=residual_td3",
        *policy,
        f"demonstrations.episodes={config.demos}",
        f"run.root={work}",
        "run.name=residual",
        f"run.seed={config.seed}",
        f"run.steps={config.steps}",
        f"run.final_episodes={config.episodes}",
        "run.final_seed=300000",
    ]


def report(work: Path, out: Path) -> int:
    """Both rates, side by side."""
    names = {"base": "base-simulation.json", "simulation": "simulation.json", "robot": "robot/report.json"}
    found = {name: json.loads((work / path).read_text()) for name, path in names.items()}
    rows = [
        {"name": "simulation_rate", "ours": found["simulation"]["rate"]},
        {"name": "ros_rate", "ours": found["robot"]["rate"]},
        {"name": "base_rate", "ours": found["base"]["rate"]},
    ]
    kept = {n: {k: v[k] for k in ("successes", "episodes", "rate", "wilson95")} for n, v in found.items()}
    kept["robot"] |= {k: found["robot"][k] for k in ("late_p99_ms", "late_max_ms", "missed_periods", "fault")}
    write_json(out / "results.json", {"rows": rows, "runs": kept})
    shutil.copyfile(work / "residual/config.yaml", out / "config.yaml")
    for row in rows:
        print(f"{row['name']:<16} {row['ours']:.1%}")
    print(f"wrote {out / 'results.json'}")
    return int(found["robot"]["rate"] < found["simulation"]["rate"] - 0.05)
