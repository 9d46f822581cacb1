"""Residual RL against RLPD and filtered BC on many tasks at equal environment steps, one table at the end.

Every part (demonstrations, base, evaluation, run) is a ``vla-rl`` command of its own, kept once finished: stopped at
any moment, the same command goes on. Bases are LeRobot's ACT cloned from a few noisy demonstrations on the
simulator's state, so that dozens of runs fit a small machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from vla_rl.config import compose, nearest
from vla_rl.errors import UserError
from vla_rl.runtime.metrics import write_json, write_text
from vla_rl.stats import wilson

TITLES = {"residual_td3": "residual RL", "rlpd": "RLPD", "filtered_bc": "filtered BC"}


def run(overrides: list[str]) -> int:
    """Run what is missing and write the table after every run."""
    config = compose("bench_residual", overrides)
    names = list(config.only or config.tasks)
    for name in names:
        if name not in config.tasks:
            raise UserError(f"only={name}: {nearest(name, list(config.tasks))}")
    for algorithm in config.algorithms:
        if algorithm not in TITLES:
            raise UserError(f"algorithms={algorithm}: {nearest(algorithm, TITLES)}")
    for name in names:
        _prepare(config, name)
        for seed in config.seeds:
            for algorithm in config.algorithms:
                _train(config, name, algorithm, int(seed))
                write_table(config)
    write_table(config)
    return 0


def _call(arguments: list[str], log: Path) -> None:
    """One ``vla-rl`` command in a process of its own (its memory and its threads end with it)."""
    log.parent.mkdir(parents=True, exist_ok=True)
    print("vla-rl", *arguments, flush=True)
    with open(log, "a") as handle:
        code = subprocess.run(
            [sys.executable, "-m", "vla_rl.cli", *arguments], stdout=handle, stderr=handle, check=False
        ).returncode
    if code:
        lines = log.read_text().strip().splitlines()
        raise UserError(f"vla-rl {arguments[0]} ended with {code}, see {log}: {lines[-1] if lines else ''}")


def _prepare(config: Any, name: str) -> None:
    """Demonstrations, a base cloned from them, and its success."""
    task, folder = config.tasks[name], Path(config.work) / name
    env = [*task.env, "env.num_envs=8"]
    log = folder / "log.txt"
    if not (folder / "demonstrations" / "meta" / "info.json").is_file():
        shown = [f"policy.noise={task.noise}", f"episodes={task.demos}", f"out={folder}/demonstrations"]
        _call(["record", *env, "env.cameras=[]", "policy=expert", *shown], log)
    base = folder / "base"
    if not (base / "model.safetensors").is_file() or (base / "training.safetensors").is_file():
        inputs = "inputs=[observation.state,observation.environment_state]"
        settings = [f"train.steps={config.bc_steps}", "train.type=act", f"train.{inputs}", "train.lr=0.0003"]
        _call(["pretrain", f"datasets=[{folder}/demonstrations]", f"out={base}", *settings], log)
    if not (folder / "base.json").is_file():
        policy = [f"policy.path={base}", f"policy.horizon={config.horizon}"]
        counted = [f"episodes={config.episodes}", "seed=200000", f"json={folder}/base.json"]
        _call(["eval", *env, "env.cameras=[]", *policy, *counted], log)


def _train(config: Any, name: str, algorithm: str, seed: int) -> None:
    """One run, unless it is there already; an unfinished one is continued."""
    task, folder = config.tasks[name], Path(config.work) / name
    run_folder = folder / f"{algorithm}-{seed}"
    if (run_folder / "final.json").is_file():
        return
    if run_folder.is_dir() and any((run_folder / "checkpoints").glob("*")):
        arguments = [f"resume={run_folder}"]
    else:
        arguments = [
            "experiment=bench",
            *[o for o in task.env if o.startswith("env=")],
            *[o for o in task.env if not o.startswith("env=")],
            "env.num_envs=8",
            "env.cameras=[]",
            f"algorithm={algorithm}",
            f"policy.path={folder}/base",
            f"policy.horizon={config.horizon}",
            f"demonstrations.episodes={config.shown}",
            f"run.root={folder}",
            f"run.name={algorithm}-{seed}",
            f"run.seed={seed}",
            f"run.steps={config.steps}",
            f"run.final_episodes={config.episodes}",
        ]
        if name in config.scale and algorithm != "rlpd":
            arguments.append(f"algorithm.scale={config.scale[name]}")
    _call(["train", *arguments], folder / f"{algorithm}-{seed}.log")


def write_table(config: Any) -> None:
    """``results.json`` and ``README.md`` in ``config.out`` from whatever has finished."""
    rows: dict[str, Any] = {}
    for name in config.tasks:
        folder = Path(config.work) / name
        if not (folder / "base.json").is_file():
            continue
        row: dict[str, Any] = {"base": _counts([folder / "base.json"])}
        for algorithm in TITLES:
            found = sorted(folder.glob(f"{algorithm}-*/final.json"))
            if found:
                row[algorithm] = _counts(found)
        rows[name] = row
    out = Path(config.out)
    write_json(out / "results.json", rows)
    write_text(out / "table.md", _markdown(rows, config))


def _counts(files: list[Path]) -> dict[str, Any]:
    """Successes of several evaluations together, and each one's rate."""
    parts = [json.loads(file.read_text()) for file in files]
    successes, episodes = (sum(p[key] for p in parts) for key in ("successes", "episodes"))
    return {
        "successes": successes,
        "episodes": episodes,
        "rate": successes / episodes,
        "wilson95": list(wilson(successes, episodes)),
        "rates": [p["rate"] for p in parts],
    }


def _markdown(rows: dict[str, Any], config: Any) -> str:
    columns = ["base", *TITLES]
    lines = [
        f"Success over {config.episodes} episodes of each seed's final policy, after {config.steps} environment "
        "steps; 95 % Wilson interval over all seeds' episodes; number of seeds in brackets.",
        "",
        "| task | " + " | ".join(["base", *TITLES.values()]) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, row in rows.items():
        cells = [_cell(row[c], c) if c in row else "not run" for c in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(part: dict[str, Any], column: str) -> str:
    low, high = part["wilson95"]
    seeds = "" if column == "base" else f" [{len(part['rates'])}]"
    return f"{100 * part['rate']:.0f} % ({100 * low:.0f}-{100 * high:.0f}){seeds}"
