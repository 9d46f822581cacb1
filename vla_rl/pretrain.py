"""Behaviour cloning of any LeRobot policy from LeRobotDatasets; the base that reinforcement learning improves.

Frames are decoded once into RAM (decoding video at every step would dominate), statistics come from the data, and
the processors are saved with the policy, so the result is a plain LeRobot policy folder.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vla_rl.errors import NonFiniteError, UserError
from vla_rl.keys import ACTION, IMAGES, STATE, TASK
from vla_rl.policies.nano import VLM_FOLDER, build_vlm, make_relative, smolvla_config


@dataclass
class PretrainConfig:
    """Settings.

    Attributes:
        type: ``smolvla_nano`` or a LeRobot policy type (``act``, ``diffusion`` ...).
        steps: optimiser steps.
        batch_size: samples per step.
        lr: peak AdamW step size; cosine to 2 % after ``warmup`` steps.
        warmup: linear warm-up steps.
        weight_decay: AdamW's.
        grad_clip: maximal gradient norm.
        chunk_size: T.
        image_shift: random shift augmentation in pixels (0 = off).
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
    inputs: list[str] = field(default_factory=list)
    seed: int = 0
    save_every: int = 500
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass
class Samples:
    """All frames of some episodes, end to end, in RAM.

    Attributes:
        arrays: key -> [n, ...]; images uint8 [n, 3, H, W], vectors float32.
        task: [n] instruction of each frame.
        last: [n] index of the last frame of the frame's episode.
    """

    arrays: dict[str, Tensor]
    task: list[str]
    last: Tensor

    @classmethod
    def read(cls, folders: Sequence[Path], keys: Sequence[str] = ()) -> Samples:
        """Decode LeRobotDataset folders once.

        Raises:
            UserError: no episode, or a key that some data set lacks.
        """
        from vla_rl.data.dataset import load_episodes

        episodes = [episode for folder in folders for episode in load_episodes(folder)]
        if not episodes:
            raise UserError(f"no episodes in {', '.join(map(str, folders))}: record some first (vla-rl record)")
        data = [episode.data for episode in episodes]
        wanted = [*(keys or [k for k in data[0] if k.startswith(IMAGES) or k == STATE]), ACTION]
        for key in wanted:
            if any(key not in part for part in data):
                raise UserError(f"the data set has no {key} (it has {', '.join(data[0])}): record it, or change inputs")
        arrays = {key: torch.cat([part[key] for part in data]) for key in wanted}
        task, last, end = [], [], 0
        for episode in episodes:
            end += episode.length
            task += [episode.task] * episode.length
            last.append(torch.full((episode.length,), end - 1))
        return cls(arrays, task, torch.cat(last))

    def batch(self, index: Tensor, chunk: int, shift: int) -> tuple[dict[str, Any], Tensor]:
        """LeRobot batch for frames ``index`` [b] and the padding mask [b, T] of its action chunks."""
        ahead = index[:, None] + torch.arange(chunk)
        last = self.last[index][:, None]
        out: dict[str, Any] = {TASK: [self.task[i] for i in index.tolist()]}
        for key, array in self.arrays.items():
            if key == ACTION:
                out[key] = array[torch.minimum(ahead, last)]
            elif key.startswith(IMAGES):
                out[key] = _shift(array[index].float() / 255, shift)
            else:
                out[key] = array[index]
        return out, ahead > last

    def statistics(self) -> dict[str, dict[str, Tensor]]:
        """LeRobot normalisation statistics of the vectors (and trivial ones of the images)."""
        out = {}
        for key, array in self.arrays.items():
            if key.startswith(IMAGES):
                shape = (3, 1, 1)
                out[key] = {
                    "mean": torch.zeros(shape),
                    "std": torch.ones(shape),
                    "min": torch.zeros(shape),
                    "max": torch.ones(shape),
                }
                continue
            x = array.double()
            values = {"mean": x.mean(0), "std": x.std(0).clamp(min=1e-6), "min": x.amin(0), "max": x.amax(0)}
            out[key] = {name: value.float() for name, value in values.items()}
        return out


def _shift(images: Tensor, pixels: int) -> Tensor:
    """The whole batch moved by one random offset of up to ``pixels`` (edge replicated)."""
    if not pixels:
        return images
    height, width = images.shape[-2:]
    dx, dy = torch.randint(0, 2 * pixels + 1, (2,)).tolist()
    padded = torch.nn.functional.pad(images, (pixels,) * 4, mode="replicate")
    return padded[..., dy : dy + height, dx : dx + width]


def make_policy(config: PretrainConfig, samples: Samples, folder: Path) -> tuple[Any, Any]:
    """A fresh LeRobot policy and its configuration for the samples' features.

    Raises:
        UserError: a type LeRobot does not know.
    """
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config

    inputs, outputs = {}, {}
    for key, array in samples.arrays.items():
        if key == ACTION:
            outputs[key] = PolicyFeature(FeatureType.ACTION, (array.shape[1],))
        elif key.startswith(IMAGES):
            inputs[key] = PolicyFeature(FeatureType.VISUAL, tuple(array.shape[1:]))
        else:
            kind = FeatureType.ENV if key == "observation.environment_state" else FeatureType.STATE
            inputs[key] = PolicyFeature(kind, (array.shape[1],))
    if config.type == "smolvla_nano":
        from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

        size = next(f.shape[-1] for k, f in inputs.items() if k.startswith(IMAGES))
        vlm = folder / VLM_FOLDER
        build_vlm(vlm, image_size=size, tasks=sorted(set(samples.task)))
        policy_config = smolvla_config(
            vlm, features=(inputs, outputs), image_size=size, chunk_size=config.chunk_size, **config.overrides
        )
        return SmolVLAPolicy(policy_config), policy_config
    small = {"act": {"dim_model": 256, "dim_feedforward": 512, "n_encoder_layers": 2, "use_vae": False}}
    settings = {"chunk_size": config.chunk_size, "n_action_steps": config.chunk_size} if config.type == "act" else {}
    try:
        policy_config = make_policy_config(
            config.type,
            input_features=inputs,
            output_features=outputs,
            device="cpu",
            push_to_hub=False,
            **(settings | small.get(config.type, {}) | config.overrides),
        )
        return get_policy_class(config.type)(policy_config), policy_config
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"policy.type={config.type}: {str(error).splitlines()[0]}") from error


class Pretrainer:
    """One behaviour-cloning run, resumable bit for bit on CPU.

    Args:
        config: settings.
        datasets: LeRobotDataset folders.
        out: policy folder to be; written atomically.
    """

    def __init__(self, config: PretrainConfig, datasets: Sequence[Path], out: Path) -> None:
        from lerobot.policies.factory import make_pre_post_processors

        self.config, self.out = config, out
        self.work = out.with_name(f".{out.name}.training")
        self.samples = Samples.read(datasets, config.inputs)
        torch.manual_seed(config.seed)
        self.work.mkdir(parents=True, exist_ok=True)
        self.policy, policy_config = make_policy(config, self.samples, self.work)
        self.before, self.after = make_pre_post_processors(policy_config, dataset_stats=self.samples.statistics())
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.95)
        )
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step = 0

    def rate(self, step: int) -> float:
        """Learning rate at ``step``: warm-up, then cosine to 2 %."""
        import math

        config = self.config
        warm = min(1.0, (step + 1) / max(1, config.warmup))
        return config.lr * warm * (0.49 * (1 + math.cos(math.pi * step / config.steps)) + 0.02)

    def learn(self, progress: Callable[[int, float], None] | None = None) -> None:
        """Train to ``config.steps``, saving on the way; ``progress(step, loss)``.

        Raises:
            NonFiniteError: the loss is NaN or infinite.
        """
        config = self.config
        self.policy.train()
        count = len(self.samples.last)
        while self.step < config.steps:
            index = torch.randint(count, (config.batch_size,), generator=self.generator)
            raw, pad = self.samples.batch(index, config.chunk_size, config.image_shift)
            batch = self.before(raw)
            batch["action_is_pad"] = pad
            loss = self.policy.forward(batch)[0]
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(self.step)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), config.grad_clip)
            self.optimizer.step()
            self.step += 1
            value = loss.item()
            if value != value or abs(value) == float("inf"):
                raise NonFiniteError(f"the pre-training loss is {value} at step {self.step}")
            if progress is not None:
                progress(self.step, value)
            if self.step % config.save_every == 0 or self.step == config.steps:
                self.save()

    def save(self) -> None:
        """Policy folder plus optimiser and generators, written beside and renamed."""
        new = self.out.with_name(f".{self.out.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        if (self.work / VLM_FOLDER).is_dir():
            shutil.copytree(self.work / VLM_FOLDER, new / VLM_FOLDER)
        self.policy.save_pretrained(new)
        self.before.save_pretrained(new)
        self.after.save_pretrained(new)
        make_relative(new)
        self._save_state(new)
        old = self.out.with_name(f".{self.out.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.out.exists():
            self.out.rename(old)
        new.rename(self.out)
        shutil.rmtree(old, ignore_errors=True)
        if self.step >= self.config.steps:
            shutil.rmtree(self.work, ignore_errors=True)

    def _save_state(self, folder: Path) -> None:
        done = self.step >= self.config.steps
        (folder / "pretrain.json").write_text(json.dumps({"step": self.step, "done": done, "time": time.time()}))
        if done:
            return  # the optimiser is three times the policy's size, and of no more use
        tensors = {"generator": self.generator.get_state(), "torch": torch.random.get_rng_state()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{index}.{name}": value.contiguous() for name, value in state.items()}
        save_file(tensors, folder / "training.safetensors")

    def resume(self) -> bool:
        """Continue from ``out`` if it holds an unfinished run; False when there is nothing to continue."""
        state_file = self.out / "training.safetensors"
        if not state_file.is_file():
            return False
        self.step = json.loads((self.out / "pretrain.json").read_text())["step"]
        self.policy.load_state_dict(load_file(self.out / "model.safetensors"), strict=False)
        tensors = load_file(state_file)
        self.generator.set_state(tensors.pop("generator"))
        torch.random.set_rng_state(tensors.pop("torch"))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        return True
