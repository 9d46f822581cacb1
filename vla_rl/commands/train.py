"""vla-rl train: improve a base policy by reinforcement learning.

usage: vla-rl train experiment=NAME [key=value ...]
       vla-rl train resume=runs/NAME

  experiment=table                  complete settings from configs/experiment/
  env=maniskill env.ids=[PushCube-v1]
  policy.path=FOLDER policy.horizon=16
  algorithm=residual_td3 algorithm.scale=0.5
                                    also rlpd, filtered_bc; dppo, dsrl (diffusion and flow bases); token_ppo, opd
                                    (token bases); rpd (a teacher's action beside the reward)
  demonstrations=expert demonstrations.episodes=20
  teleop=overseer schedule=graded   demonstrations first, hard states, help that is taken back
  curriculum=near_half              several tasks (env.ids=[a,b,c]): more episodes of those that succeed half of the time
  launcher=ray num_collectors=4     collectors, learner and inference workers in processes of their own (docs/scaling.md)
  run.name=first run.seed=1 run.steps=60000 run.minutes=15

A run folder holds config.yaml, metrics.jsonl, checkpoints/, videos/, report.html and report.json.
kill it whenever you like: resume= continues from the newest good checkpoint.

Examples:
  vla-rl train experiment=table run.name=mine
  vla-rl train resume=runs/mine
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from vla_rl.commands.eval import line
from vla_rl.config import build, compose
from vla_rl.runtime.progress import track


def run(overrides: list[str]) -> int:
    """Train to the end and write the report."""
    resume = next((o.split("=", 1)[1] for o in overrides if o.startswith("resume=")), None)
    overrides = [o for o in overrides if not o.startswith("resume=")]
    train(overrides, resume)
    return 0


def train(overrides: list[str], resume: str | None = None, config_name: str = "train") -> Path:
    """Run (or resume) the configuration; returns the run folder."""
    from omegaconf import OmegaConf

    from vla_rl.config import resolve_path
    from vla_rl.errors import UserError
    from vla_rl.policies.ahead import importing_ahead
    from vla_rl.rewards.build import environment_settings, rewarded
    from vla_rl.runtime.threads import set_threads
    from vla_rl.runtime.versions import MemoryWatch
    from vla_rl.train import Trainer, distributed, open_run

    began = time.monotonic()
    if resume is None:
        config = compose(config_name, overrides)
    else:
        saved = resolve_path(resume) / "config.yaml"
        if not saved.is_file():
            raise UserError(f"resume={resume}: no run there (it would hold config.yaml)")
        config = OmegaConf.load(saved)
        if overrides:
            config = OmegaConf.merge(config, OmegaConf.from_dotlist(overrides))
    set_threads(config.run.threads)
    if distributed(config):
        from vla_rl.runtime.distributed.driver import check_distributed

        check_distributed(config)
    own = eval_env_of(config)
    with importing_ahead(config):
        env = build(config.env, **environment_settings(config))  # pyright: ignore[reportArgumentType]
    env = rewarded(env, config.get("reward"))  # pyright: ignore[reportArgumentType]
    folder, checkpoint, trainer, eval_env = None, None, None, None
    try:
        with MemoryWatch() as memory:
            folder, checkpoint = open_run(config, resume, OmegaConf.to_yaml(config))
            print(f"run folder {folder.path}")
            eval_env = build(config.env) if own else None
            trainer = Trainer(config, folder, env, eval_env=eval_env)
            results = _work(trainer, config, checkpoint)
            _report(trainer, results, time.monotonic() - began, memory.peak_mb())
            return folder.path
    except KeyboardInterrupt:
        if folder is not None:
            print(f"to go on: vla-rl train resume={folder.path}", flush=True)
        raise
    finally:
        if trainer is not None:
            trainer.close()
        for each in (env, eval_env):
            if each is not None:
                each.close()
        if folder is not None:
            folder.close()


def eval_env_of(config: Any) -> bool:
    """Whether evaluations on the way have environments of their own (``run.eval_env``).

    Raises:
        UserError: neither ``shared`` nor ``own``, or a second robot is asked for.
    """
    from vla_rl.errors import UserError

    which = config.run.get("eval_env", "shared")
    if which not in ("shared", "own"):
        raise UserError(f"run.eval_env={which}: choose from shared, own")
    if which == "own" and "RobotEnv" in str(config.env.get("_target_")):
        raise UserError("run.eval_env=own: there is one robot; set shared")
    return which == "own" and bool(config.run.eval_every)


def _work(trainer: Any, config: Any, checkpoint: Path | None) -> dict[str, Any]:
    """Base evaluation, demonstrations, learning, final evaluation."""
    import json

    from vla_rl.train import distributed

    run, folder = config.run, trainer.run.path
    results: dict[str, Any] = {}
    saved = folder / "base.json"
    if saved.is_file():
        results["base"] = json.loads(saved.read_text())
    elif run.base_episodes:
        results["base"] = _measure(trainer, "base", run.base_episodes, run.base_seed, base=True)
    if checkpoint is not None:
        trainer.restore(checkpoint)
        print(f"resumed at step {trainer.progress.steps}")
    elif config.demonstrations and config.demonstrations.get("episodes"):
        print(f"demonstrations: {trainer.demonstrate()} episodes")
    with track("train", run.steps, unit="step") as bar:

        def show(progress: Any, metrics: dict[str, float]) -> None:
            success = progress.success()
            shown = "-" if success is None else f"{100 * success:.0f} %"
            counts = {"update": trainer.algorithm.updates}
            bar.update(progress.steps, counts=counts, success=shown, q=f"{metrics.get('q', 0.0):.2f}")

        trainer.on_progress = show
        if distributed(config):
            from vla_rl.runtime.distributed.driver import learn_on_ray

            learn_on_ray(trainer)
        else:
            trainer.learn()
    if run.final_episodes:
        results["final"] = _measure(trainer, "final", run.final_episodes, run.final_seed)
    return results


def _measure(trainer: Any, name: str, episodes: int, seed: int, *, base: bool = False) -> dict[str, Any]:
    """Evaluate, keep the result and the videos in the run folder, print one line."""
    from vla_rl.rollout.video import grid, save_mp4
    from vla_rl.runtime.metrics import write_json

    with track(f"evaluate {name}", episodes, unit="episode") as bar:
        film = int(trainer.config.run.film)
        result = trainer.evaluate(episodes, seed, film=film, base=base, progress=lambda n, _: bar.update(n))
    summary = result.summary()
    print(f"{name}: {line(summary)}")
    for task, part in summary["per_task"].items():
        print(f"  {task:<28} {line(part)}")
    if result.videos:
        won = {(e.task_id, e.seed): e.success for e in result.episodes}
        keys = sorted(result.videos)
        videos = trainer.run.path / "videos"
        videos.mkdir(exist_ok=True)
        frames = grid(
            [result.videos[k] for k in keys], [k[0] for k in keys], [won.get(k, False) for k in keys], 3
        )
        save_mp4(frames, videos / f"{name}.mp4", fps=int(trainer.env.env_spec.rate_hz))
    write_json(trainer.run.path / f"{name}.json", summary)
    return summary


def _report(trainer: Any, results: dict[str, Any], wall: float, peak: float) -> None:
    from vla_rl.report import write_report
    from vla_rl.runtime.run_folder import read_metrics
    from vla_rl.runtime.versions import versions

    folder = trainer.run.path
    rows = read_metrics(trainer.run.metrics)
    videos = {k: folder / "videos" / f"{n}.mp4" for k, n in (("before", "base"), ("after", "final"))}
    data = {
        "title": trainer.config.run.name,
        "base": results.get("base"),
        "final": results.get("final"),
        "train_seconds": trainer.progress.seconds,
        "wall_seconds": wall,
        "env_steps": trainer.progress.steps,
        "episodes": trainer.progress.episodes,
        "stopped": trainer.env.halt,
        "peak_rss_mb": peak,
        "seed": int(trainer.config.run.seed),
        "versions": versions(),
        "curve": [r for r in rows if "success" in r],
        "evaluations": [{"step": r["step"]} | r["evaluation"] for r in rows if "evaluation" in r],
        "metrics": rows,
        "config": (folder / "config.yaml").read_text(),
        "videos": {k: p for k, p in videos.items() if p.is_file()},
        "believed": trainer.run.exhibited(),
    }
    print(f"report {write_report(folder, data)}")
