"""vla-rl pretrain: behaviour cloning of a base policy from LeRobotDatasets.

usage: vla-rl pretrain datasets=[DIR,...] out=DIR [type=smolvla_nano] [steps=N] [key=value ...]

  type=smolvla_nano                  LeRobot's SmolVLA at 3.7 M parameters, no download
  type=dit_nano                      LeRobot's MultiTaskDiT, diffusion; overrides={objective:flow_matching}: a flow
  type=token_nano                    action tokens on a small InternVL (OpenVLA's recipe); token_vla with
                                     overrides={vlm:OpenGVLab/InternVL3-1B-hf}: on a published one
  type=gaussian_nano                 a small MLP, a Gaussian over chunks; overrides={modes:5}: a mixture of five
  type=act inputs=[observation.state,observation.environment_state]
                                     any LeRobot policy type; inputs choose what it sees
  vision_steps=800 vision_targets={observation.environment_state:[9,10,11]}
                                     teach a vision tower without pretrained weights to see first, also in
                                     vision_datasets=[data/scenes] (vla-rl record only_success=false)
  mirror=table                       each episode also as a mirror shows it (configs/mirror; docs/mirror.md)
  out=assets/mine                    a plain LeRobot policy folder; the same command again continues
                                     an interrupted run

Settings of training may be written with or without ``train.``: lr=0.001 is train.lr=0.001 (configs/pretrain.yaml).

Examples:
  vla-rl pretrain datasets=[data/table] out=assets/smolvla-nano steps=6000
"""

from __future__ import annotations

from vla_rl.config import compose, resolve_path, typed
from vla_rl.runtime.progress import track


def _spelled_out(overrides: list[str]) -> list[str]:
    """``lr=0.001`` as ``train.lr=0.001``, for every setting of training."""
    from dataclasses import fields

    from vla_rl.pretrain import PretrainConfig

    settings = {f.name for f in fields(PretrainConfig)}
    return [f"train.{o}" if o.partition("=")[0] in settings else o for o in overrides]


def run(overrides: list[str]) -> int:
    """Train to the end; prints loss on the way."""
    from pathlib import Path

    from vla_rl.errors import UserError
    from vla_rl.pretrain import PretrainConfig, Pretrainer
    from vla_rl.runtime.threads import set_threads

    config = compose("pretrain", _spelled_out(overrides))
    folders = [resolve_path(d) for d in config.datasets]
    for folder in folders:
        if not (folder / "meta" / "info.json").is_file():
            raise UserError(f"{folder} is not a LeRobotDataset: it has no meta/info.json (datasets=[DIR])")
    out = Path(config.out)
    if out.exists() and not (out / "training.safetensors").is_file():
        raise UserError(f"{out} exists and is no unfinished run: choose another out=")
    set_threads(config.threads)
    trainer = Pretrainer(typed(PretrainConfig, config.train, "train."), folders, out)
    if trainer.resume():
        print(f"continuing at step {trainer.step}")
    elif trainer.config.vision_steps:
        with track("visual warm start", trainer.config.vision_steps, unit="step") as bar:
            explained = trainer.warm_start(lambda step, loss: bar.update(step, loss=f"{loss:.4f}"))
        print(f"the vision tower explains {explained:.1%} of the variance of {list(trainer.vision_targets)}")
    losses: list[float] = []
    with track("pretrain", trainer.config.steps, unit="step") as bar:

        def show(step: int, loss: float) -> None:
            losses.append(loss)
            recent = losses[-100:]
            bar.update(step, loss=f"{sum(recent) / len(recent):.4f}")

        trainer.learn(show)
    print(f"wrote {out}")
    return 0
