"""Behaviour cloning of any LeRobot policy from LeRobotDatasets; the base that reinforcement learning improves.

Frames are decoded once into RAM, statistics come from the data, and the processors are saved with the policy, so
the result is a plain LeRobot policy folder.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vla_rl.algorithms.descent import descend
from vla_rl.config import resolve_path
from vla_rl.data.mirror import load_mirror
from vla_rl.errors import NonFiniteError, UserError
from vla_rl.keys import ENV_STATE, STATE
from vla_rl.nn.step_size import warmed_cosine
from vla_rl.policies.inside import copy_inside
from vla_rl.policies.lerobot_folder import (
    JOINED,
    first_line,
    time_steps,
)
from vla_rl.policies.nano import save_policy
from vla_rl.pretrain_data import Samples
from vla_rl.pretrain_policy import check_type, make_policy
from vla_rl.pretrain_vision import vision_targets, warm_start_vision

STATE_FILE = "training.safetensors"
NOTES = "pretrain.json"

DISK_FULL = ("No space left", "quota exceeded", "File too large")
"""How the system says it; safetensors passes the words on in an exception of its own."""

BLIND_TO_ENVIRONMENT = (
    "smolvla_nano",
    "dit_nano",
    "token_nano",
    "token_vla",
    "smolvla",
    "multi_task_dit",
    "pi0",
    "pi05",
)
"""Types that LeRobot lets have ``observation.environment_state`` and that never look at it: they get it as the end of
``observation.state``, in training and when they act (``JOINED`` in the folder's notes says so)."""


@dataclass
class PretrainConfig:
    """Settings.

    Attributes:
        type: ``smolvla_nano``, ``dit_nano``, ``token_nano``, ``gaussian_nano``, a LeRobot policy type (``act``, ``diffusion`` ...), or a policy
            folder or hub id whose weights to continue from.
        steps: optimiser steps.
        batch_size: samples per step.
        lr: peak AdamW step size; cosine to 2 % after ``warmup`` steps.
        warmup: linear warm-up steps.
        weight_decay: AdamW's.
        grad_clip: maximal gradient norm; 0 = none.
        chunk_size: T.
        image_shift: random shift augmentation in pixels (0 = off).
        vision_steps: steps of visual warm start before (``vla_rl.pretrain_vision``; 0 = none).
        vision_datasets: LeRobotDataset folders that it looks at besides: many scenes, in which nothing need succeed.
        vision_targets: what it regresses: key -> indices ([] = all that change); None = ``observation.state``.
        progress: folder of ``vla-rl data progress``: samples that lose progress are left out; None = all are cloned.
        mirror: name or file of a mirror map (``vla_rl.data.mirror``): every episode also as a mirror shows it; None = off.
        inputs: observation keys to use; () = images and ``observation.state``.
        seed: of weights and batches.
        save_every: steps between checkpoints.
        overrides: fields of the LeRobot policy configuration.
    """

    type: str = "smolvla_nano"
    steps: int = 6000
    batch_size: int = 32
    lr: float = 1e-3
    warmup: int = 100
    weight_decay: float = 1e-4
    grad_clip: float = 10.0
    chunk_size: int = 16
    image_shift: int = 4
    vision_steps: int = 0
    vision_datasets: list[str] = field(default_factory=list)
    vision_targets: dict[str, list[int]] | None = None
    progress: str | None = None
    mirror: str | None = None
    inputs: list[str] = field(default_factory=list)
    seed: int = 0
    save_every: int = 500
    overrides: dict[str, Any] | None = None


class Pretrainer:
    """One behaviour-cloning run, resumable bit for bit on CPU.

    Args:
        config: settings.
        datasets: LeRobotDataset folders.
        out: policy folder to be; written atomically.

    Raises:
        UserError: data sets or settings that do not fit.
    """

    def __init__(self, config: PretrainConfig, datasets: Sequence[Path], out: Path) -> None:
        from lerobot.policies.factory import make_pre_post_processors

        for name in ("steps", "batch_size", "save_every", "chunk_size"):
            if getattr(config, name) < 1:
                raise UserError(f"train.{name}={getattr(config, name)} must be at least 1")
        self.config, self.out = config, out
        self.work = out.with_name(f".{out.name}.training")
        check_type(config.type)
        mirror = load_mirror(config.mirror) if config.mirror else None
        self._recover()
        self.vision_targets = config.vision_targets or {STATE: []}
        extra = list(self.vision_targets) if config.vision_steps else []
        self.samples = Samples.read(datasets, config.inputs, extra)
        if mirror is not None:
            self.samples.add_mirrored(mirror)
        self.joined = config.type in BLIND_TO_ENVIRONMENT and self.samples.join(STATE, ENV_STATE)
        self.scenes = self.samples
        if config.vision_steps:
            more = [resolve_path(folder) for folder in config.vision_datasets]
            if more:
                self.scenes = Samples.read([*datasets, *more], config.inputs, extra)
            vision_targets(self.scenes, self.vision_targets)
        elif config.vision_datasets:
            raise UserError("train.vision_datasets are for the visual warm start: set train.vision_steps")
        torch.manual_seed(config.seed)
        self.work.mkdir(parents=True, exist_ok=True)
        self.policy, policy_config = make_policy(config, self.samples, self.work)
        self.before, self.after = make_pre_post_processors(
            policy_config, dataset_stats=self.samples.statistics()
        )
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(),
            lr=config.lr,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.95),
            fused=True,
        )
        self.generator = torch.Generator().manual_seed(config.seed)
        self.starts = self.samples.starts(int(getattr(policy_config, "drop_n_last_frames", 0) or 0))
        if config.progress:
            self.starts = self._progressing(Path(config.progress), datasets)
        self.action_offsets = list(policy_config.action_delta_indices or range(config.chunk_size))
        timed = time_steps(policy_config) is not None
        self.observation_offsets = list(policy_config.observation_delta_indices) if timed else None
        self.step = 0

    def _progressing(self, progress: Path, datasets: Sequence[Path]) -> Tensor:
        """The starts from which the value does not fall."""
        from vla_rl.data.progress import read_mask

        mask = read_mask(progress, datasets)
        if self.samples.mirror is not None:
            mask = torch.cat([mask, mask])
        if len(mask) != len(self.samples.last):
            raise UserError(
                f"{progress} was made of {len(mask)} frames, the data sets have {len(self.samples.last)}"
            )
        starts = self.starts[mask[self.starts]]
        if not len(starts):
            raise UserError(f"{progress} leaves no sample: make it with a larger drop=")
        return starts

    def warm_start(self, progress: Callable[[int, float], None] | None = None) -> float | None:
        """The visual warm start, if one is asked for and training has not begun; its R squared."""
        config = self.config
        scenes, self.scenes = self.scenes, self.samples  # let go of, also by a run that goes on
        if self.step or not config.vision_steps:
            return None
        explained = warm_start_vision(
            self.policy,
            scenes,
            self.vision_targets,
            steps=config.vision_steps,
            batch_size=2 * config.batch_size,
            lr=config.lr,
            shift=config.image_shift,
            generator=self.generator,
            progress=progress,
        )
        self.save()
        return explained

    def learn(self, progress: Callable[[int, float], None] | None = None) -> None:
        """Train to ``config.steps``, saving on the way; ``progress(step, loss)``.

        Raises:
            NonFiniteError: the loss is NaN or infinite; the last checkpoint is kept.
        """
        config = self.config
        self.policy.train()
        while self.step < config.steps:
            pick = torch.randint(len(self.starts), (config.batch_size,), generator=self.generator)
            raw, pad = self.samples.batch(
                self.starts[pick], self.action_offsets, self.observation_offsets, config.image_shift
            )
            batch = self.before(raw)
            batch["action_is_pad"] = pad
            loss = self.policy.forward(batch)[0]
            value = loss.item()
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"the pre-training loss is {value} at step {self.step + 1}: lower train.lr"
                )
            for group in self.optimizer.param_groups:
                group["lr"] = warmed_cosine(config.lr, config.warmup, self.step, config.steps)
            descend(self.optimizer, loss, config.grad_clip)
            self.step += 1
            if progress is not None:
                progress(self.step, value)
            if self.step % config.save_every == 0 or self.step == config.steps:
                self.save()

    def save(self) -> None:
        """Policy folder plus optimiser and generators, written beside and renamed.

        Raises:
            UserError: no space left; the checkpoint before is kept.
        """
        new, old = self._beside("new"), self._beside("old")
        shutil.rmtree(new, ignore_errors=True)
        try:
            new.mkdir(parents=True)
            copy_inside(self.work, new)
            save_policy(new, self.policy, self.before, self.after)
            self._save_state(new)
        except Exception as error:
            if not any(text in str(error) for text in DISK_FULL):
                raise
            shutil.rmtree(new, ignore_errors=True)
            raise UserError(
                f"no space left for {self.out} at step {self.step}: free some and run again"
            ) from error
        shutil.rmtree(old, ignore_errors=True)
        if self.out.exists():
            self.out.rename(old)
        new.rename(self.out)
        shutil.rmtree(old, ignore_errors=True)
        if self.step >= self.config.steps:
            shutil.rmtree(self.work, ignore_errors=True)

    def _beside(self, what: str) -> Path:
        return self.out.with_name(f".{self.out.name}.{what}")

    def _recover(self) -> None:
        """Finish a replacement of ``out`` that was killed between its two renames."""
        if not self.out.exists() and self._beside("old").is_dir():
            self._beside("old").rename(self.out)

    def _settings(self) -> dict[str, Any]:
        """What a continuation must share to be the same run."""
        settings = asdict(self.config) | {"frames": len(self.samples.last)}
        del settings["save_every"]
        return json.loads(json.dumps(settings))

    def _save_state(self, folder: Path) -> None:
        done = self.step >= self.config.steps
        notes = {
            "step": self.step,
            "done": done,
            "rate_hz": self.samples.rate_hz,
            JOINED: self.joined,
            "settings": self._settings(),
        }
        (folder / NOTES).write_text(json.dumps(notes, indent=2) + "\n")
        if done:
            return  # the optimiser is twice the policy's size, and of no more use
        tensors = {"generator": self.generator.get_state(), "torch": torch.random.get_rng_state()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{index}.{name}": value.contiguous() for name, value in state.items()}
        save_file(tensors, folder / STATE_FILE)

    def resume(self) -> bool:
        """Continue from ``out`` if it holds an unfinished run; False when there is nothing to continue.

        Raises:
            UserError: it was begun with other settings or data, or is damaged.
        """
        if not (self.out / STATE_FILE).is_file():
            return False
        try:
            notes = json.loads((self.out / NOTES).read_text())
            weights = load_file(self.out / "model.safetensors")
            tensors = load_file(self.out / STATE_FILE)
        except Exception as error:
            raise UserError(
                f"{self.out} cannot be continued: {first_line(error)} (remove it to begin anew)"
            ) from error
        begun, now = notes.get("settings"), self._settings()
        if begun is None:
            raise UserError(
                f"{self.out} was begun by another version of vla-rl: remove it, or choose another out="
            )
        for name in now:
            if begun.get(name) != now[name]:
                raise UserError(
                    f"{self.out} was begun with {name}={begun.get(name)}, not {now[name]}: use the same settings, or "
                    "another out="
                )
        self.policy.load_state_dict(weights, strict=False)  # tied weights are stored once
        self.generator.set_state(tensors.pop("generator"))
        torch.random.set_rng_state(tensors.pop("torch"))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        self.step = notes["step"]
        return True


def pretrain(
    config: PretrainConfig,
    datasets: Sequence[Path],
    out: Path,
    *,
    num_threads: int | None = None,
    resume: bool = True,
    progress: Callable[[int, float], None] | None = None,
) -> Path:
    """Train ``out`` from data sets, or continue it; returns ``out``.

    Args:
        config: settings.
        datasets: LeRobotDataset folders.
        out: policy folder to be.
        num_threads: torch threads; None = as they are.
        resume: continue an unfinished run in ``out`` (otherwise ``out`` must be free).
        progress: called with (step, loss).

    Raises:
        UserError: ``out`` is taken, or data sets or settings do not fit.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    unfinished = (out / STATE_FILE).is_file()
    if out.exists() and not (resume and unfinished):
        raise UserError(
            f"{out} exists{'' if unfinished else ' and is no unfinished run'}: choose another out="
        )
    trainer = Pretrainer(config, datasets, out)
    if not trainer.resume():
        trainer.warm_start()
    trainer.learn(progress)
    return out
