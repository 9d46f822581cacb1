"""DPPO on a diffusion base, DPPO on a flow, DSRL and residual RL on many tasks, from the same few demonstrations.

Every part (demonstrations, bases, evaluation, run) is a ``vla-rl`` command of its own, kept once finished: stopped at
any moment, the same command goes on. Bases are LeRobot's MultiTaskDiT at a tenth of a million parameters, cloned from a
few noisy demonstrations on the simulator's state, so that dozens of runs fit a small machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_rl.bench.diffusion_table import own_settings, policy_of, write_table
from vla_rl.config import compose
from vla_rl.runtime.stages import call, cloned, counted, demonstrated, fill, trained, workers

TINY = (
    "hidden_dim:64,num_layers:2,num_heads:2,timestep_embed_dim:32,"
    "text_width:32,text_layers:1,vision_width:32,vision_layers:1"
)
"""Overrides of a MultiTaskDiT whose chunk of five denoising steps takes one core a few milliseconds."""


def run(overrides: list[str], name: str = "bench_diffusion") -> int:
    """Run what is missing of the configuration ``name`` and write the table after every run."""
    fill(compose(name, overrides), _prepare, _train, write_table)
    return 0


def _prepare(config: Any, name: str) -> None:
    """Demonstrations, a base of each kind that is asked for, and its success."""
    task, folder = config.tasks[name], Path(config.work) / name
    env = [*task.env, "env.num_envs=8", workers(config.num_workers)]
    demonstrated(folder, env, noise=task.noise, episodes=task.demos, camera=task.get("camera"))
    for base in sorted({config.runs[a].base for a in config.algorithms}):
        overrides = ",".join([TINY, *config.bases[base]])
        cloned(
            folder,
            [
                "train.type=dit_nano",
                "train.lr=0.001",
                "train.batch_size=64",
                f"train.chunk_size={config.horizon}",
                f"train.steps={task.get('bc_steps', config.bc_steps)}",
                "train.overrides={" + overrides + "}",
            ],
            name=base,
        )
        blind, policy = [*env, "env.cameras=[]"], _policy(config, folder / base)
        counted(folder / f"{base}.json", blind, policy, episodes=config.episodes)


def _policy(config: Any, path: Path) -> list[str]:
    steps = f"policy.flow_steps={config.denoising_steps}"
    return ["policy=lerobot", f"policy.path={path}", f"policy.horizon={config.horizon}", steps]


def settings_of(config: Any, algorithm: str) -> list[str]:
    """Those of a run, after the settings of the one that it is ``like``."""
    asked = config.runs[algorithm]
    return [*(settings_of(config, asked.like) if "like" in asked else []), *asked.settings]


def _train(config: Any, name: str, algorithm: str, seed: int) -> None:
    """One run, unless it is there already; an unfinished one is continued."""
    task, folder, asked = config.tasks[name], Path(config.work) / name, config.runs[algorithm]
    run = folder / f"{algorithm}-{seed}"
    arguments = [
        *[o for o in task.env if o.startswith("env=")],
        *[o for o in task.env if not o.startswith("env=")],
        "env.num_envs=8",
        "env.cameras=[]",
        workers(config.num_workers),
        *_policy(config, folder / asked.base),
        *[s.format(folder=folder, camera=task.get("camera")) for s in settings_of(config, algorithm)],
        f"run.seed={seed}",
        f"run.steps={asked.steps}",
        f"run.final_episodes={config.episodes}",
        *own_settings(task, algorithm),
    ]
    if not asked.get("turns"):
        trained(run, ["experiment=bench", *arguments])
    elif policy_of(run) is None:
        call(["critic", "turns", f"out={run}", *arguments], folder / f"{run.name}.log")
