"""``vla-rl bench token_ppo``: a token VLA that sees pictures, fine-tuned on a few noisy demonstrations, then token PPO on sparse success.

After VLA-RL (arXiv 2505.18719); beside it on-policy distillation (VLA-OPD) from the same base, and how many episodes either takes. Every part is a ``vla-rl`` command of its own, kept once finished.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_rl.bench.diffusion_table import own_settings, write_table
from vla_rl.config import compose
from vla_rl.runtime.stages import counted, demonstrated, fill, pretrained, trained, workers

BASE = "token"


def run(overrides: list[str]) -> int:
    """Run what is missing and write the table after every run."""
    fill(compose("bench_token_ppo", overrides), _prepare, _train, write_table)
    return 0


def _env(config: Any, name: str) -> list[str]:
    """Overrides of a task's environment with the policy's cameras."""
    seen = [f"env.cameras=[{_cameras(config)}]", f"env.image_size={config.image_size}"]
    return [*config.tasks[name].env, "env.num_envs=16", *seen, workers(config.num_workers)]


def _cameras(config: Any) -> str:
    return ",".join(config.cameras)


def _policy(config: Any, folder: Path) -> list[str]:
    return ["policy=lerobot", f"policy.path={folder / BASE}", f"policy.horizon={config.horizon}"]


def _prepare(config: Any, name: str) -> None:
    """Demonstrations, their clone, and its success."""
    task, folder, env = config.tasks[name], Path(config.work) / name, _env(config, name)
    demonstrated(folder, env, noise=task.noise, episodes=task.demos, camera=_cameras(config))
    settings = [f"train.chunk_size={config.horizon}", *config.bases[BASE], *task.get("base", ())]
    pretrained(folder / BASE, [folder / "demonstrations"], settings, folder / "log.txt")
    counted(folder / f"{BASE}.json", env, _policy(config, folder), episodes=config.episodes)


def _train(config: Any, name: str, algorithm: str, seed: int) -> None:
    """One run, unless it is there already; an unfinished one is continued."""
    folder, asked = Path(config.work) / name, config.runs[algorithm]
    arguments = [
        "experiment=bench",
        *_env(config, name),
        *_policy(config, folder),
        *(setting.format(name=name) for setting in asked.settings),
        f"run.seed={seed}",
        f"run.steps={asked.steps}",
        f"run.final_episodes={config.episodes}",
        *own_settings(config.tasks[name], algorithm),
    ]
    trained(folder / f"{algorithm}-{seed}", arguments)
