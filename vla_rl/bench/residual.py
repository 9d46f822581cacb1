"""Residual RL against RLPD and filtered BC on many tasks at equal environment steps, one table at the end.

Every part (demonstrations, base, evaluation, run) is a ``vla-rl`` command of its own, kept once finished: stopped at
any moment, the same command goes on. Bases are LeRobot's ACT cloned from a few noisy demonstrations on the
simulator's state, so that dozens of runs fit a small machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_rl.bench.residual_table import TITLES, write_table
from vla_rl.config import compose
from vla_rl.runtime.stages import RAW, SMALL, chosen, cloned, counted, demonstrated, trained, workers


def run(overrides: list[str]) -> int:
    """Run what is missing and write the table after every run."""
    config = compose("bench_residual", overrides)
    names = chosen("only", config.only, config.tasks)
    algorithms = chosen("algorithms", config.algorithms, TITLES)
    for name in names:
        _prepare(config, name)
        for seed in config.seeds:
            for algorithm in algorithms:
                _train(config, name, algorithm, int(seed))
                write_table(config)
    write_table(config)
    return 0


def _prepare(config: Any, name: str) -> None:
    """Demonstrations, a base cloned from them, and its success."""
    task, folder = config.tasks[name], Path(config.work) / name
    env = [*task.env, "env.num_envs=8", workers(config.num_workers)]
    demonstrated(folder, env, noise=task.noise, episodes=task.demos)
    raw = [RAW] if task.get("raw_state", False) else []
    overrides = "train.overrides={" + ",".join([SMALL, *raw]) + "}"
    cloned(folder, [f"train.steps={task.get('bc_steps', config.bc_steps)}", overrides])
    policy = [f"policy.path={folder}/base", f"policy.horizon={config.horizon}"]
    counted(folder / "base.json", [*env, "env.cameras=[]"], policy, episodes=config.episodes)


def _train(config: Any, name: str, algorithm: str, seed: int) -> None:
    """One run, unless it is there already; an unfinished one is continued."""
    task, folder = config.tasks[name], Path(config.work) / name
    arguments = [
        "experiment=bench",
        *[o for o in task.env if o.startswith("env=")],
        *[o for o in task.env if not o.startswith("env=")],
        "env.num_envs=8",
        "env.cameras=[]",
        workers(config.num_workers),
        f"algorithm={algorithm}",
        f"policy.path={folder}/base",
        f"policy.horizon={config.horizon}",
        f"demonstrations.episodes={config.shown}",
        f"run.seed={seed}",
        f"run.steps={config.steps}",
        f"run.final_episodes={config.episodes}",
    ]
    if name in config.scale and algorithm != "rlpd":  # which spans the whole box
        arguments.append(f"algorithm.scale={config.scale[name]}")
    trained(folder / f"{algorithm}-{seed}", arguments)
