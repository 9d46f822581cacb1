"""All frames of LeRobotDatasets in RAM, and batches of them in the shape a LeRobot policy trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_rl.data.mirror import Mirror
from vla_rl.errors import UserError
from vla_rl.keys import ACTION, IMAGES, STATE, TASK

STATISTICS_FRAMES = 256
"""Frames from which the statistics of images are taken."""


@dataclass
class Samples:
    """All frames of some episodes, end to end; decoded once, because video decoding would dominate a step.

    Attributes:
        arrays: key -> [n, ...]; images uint8 [n, 3, H, W], vectors float32.
        task: [n] instruction of each frame.
        last: [n] index of the last frame of the frame's episode.
        rate_hz: control rate of the recordings; None = unknown.
        extra: vectors that are no input of the policy (targets of the visual warm start), key -> [n, ...].
    """

    arrays: dict[str, Tensor]
    task: list[str]
    last: Tensor
    rate_hz: float | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ends = torch.unique(self.last)
        begins = torch.cat([ends.new_zeros(1), ends[:-1] + 1])
        self.first = torch.repeat_interleave(begins, ends - begins + 1)
        """[n] index of the first frame of the frame's episode."""
        self.mirror: Mirror | None = None

    @classmethod
    def read(cls, folders: Sequence[Path], keys: Sequence[str] = (), extra: Sequence[str] = ()) -> Samples:
        """Decode LeRobotDataset folders once.

        Args:
            folders: data sets of one robot: the same keys, sizes and rate.
            keys: observation keys to use; () = images and ``observation.state``.
            extra: further vectors to read.

        Raises:
            UserError: no episode, a key that some data set lacks, or data sets that do not fit together.
        """
        from vla_rl.data.dataset import dataset_info, load_episodes

        wanted = list(keys)
        shapes: dict[str, tuple[int, ...]] = {}
        rates: set[float] = set()
        for folder in folders:
            info = dataset_info(folder)
            features = info["features"]
            wanted = wanted or [k for k in features if k.startswith(IMAGES) or k == STATE]
            rates.add(float(info.get("fps") or 0))
            for key in [*wanted, *extra, ACTION]:
                if key not in features:
                    have = ", ".join(k for k in features if k.startswith("observation.") or k == ACTION)
                    raise UserError(f"{folder} has no {key} (it has {have}): record it, or change inputs")
                shape = tuple(features[key]["shape"])
                if shapes.setdefault(key, shape) != shape:
                    raise UserError(
                        f"{key} has shape {shape} in {folder} and {shapes[key]} in {folders[0]}: data sets that "
                        "are trained on together must come from the same robot and cameras"
                    )
        if len(rates) > 1:
            raise UserError(f"data sets were recorded at {sorted(rates)} Hz: train on one rate at a time")
        cameras = [k for k in wanted if k.startswith(IMAGES)]
        episodes = [e for folder in folders for e in load_episodes(folder, images=cameras or False)]
        if not episodes:
            raise UserError("datasets=[] names no data set: record one first (vla-rl record)")
        task, last, end = [], [], 0
        for episode in episodes:
            end += episode.length
            task += [episode.task] * episode.length
            last.append(torch.full((episode.length,), end - 1))
        arrays = {}
        for key in [*wanted, ACTION]:
            # Popped as they are joined: images would otherwise be held twice for all keys.
            arrays[key] = torch.cat([episode.data.pop(key) for episode in episodes])
        more = {
            key: arrays[key] if key in arrays else torch.cat([episode.data[key] for episode in episodes])
            for key in extra
        }
        return cls(arrays, task, torch.cat(last), rates.pop() or None, more)

    def join(self, key: str, other: str) -> bool:
        """Make ``other`` the end of ``key``; whether both were there."""
        if key not in self.arrays or other not in self.arrays:
            return False
        self.arrays[key] = torch.cat([self.arrays[key], self.arrays.pop(other)], 1)
        return True

    def add_mirrored(self, mirror: Mirror) -> None:
        """Twice the episodes: each as it is, and as the mirror shows it. Pictures are kept once, flipped when asked for.

        Raises:
            UserError: the map does not cover these keys.
        """
        mirror.check({key: array.shape[1:] for key, array in (self.arrays | self.extra).items()})
        frames = len(self.last)
        for group in (self.arrays, self.extra):
            for key, array in group.items():
                if not key.startswith(IMAGES):
                    group[key] = torch.cat([array, mirror.vector(key, array)])
        self.task = self.task + [mirror.task(text) for text in self.task]
        self.last = torch.cat([self.last, self.last + frames])
        self.first = torch.cat([self.first, self.first + frames])
        self.mirror = mirror

    def pictures(self, key: str, index: Tensor, shift: int = 0) -> Tensor:
        """Camera ``key`` [b, n, 3, H, W] float in [0, 1] of frames ``index`` [b, n]; see ``shifted``."""
        if self.mirror is None:
            return shifted(self.arrays[key], index, shift)
        frames = len(self.last) // 2
        seen = index % frames
        value = shifted(self.arrays[key], seen, shift)
        in_mirror = (index >= frames).any(1)
        if in_mirror.any():
            other = self.arrays[self.mirror.cameras[key]]
            value[in_mirror] = shifted(other, seen[in_mirror], shift).flip(-1)
        return value

    def starts(self, drop_last: int = 0) -> Tensor:
        """Frames [m] to train on: all but the last ``drop_last`` of each episode (at least one is kept)."""
        index = torch.arange(len(self.last))
        return index[(index <= self.last - drop_last) | (index == self.first)]

    def batch(
        self,
        index: Tensor,
        actions: Sequence[int],
        observations: Sequence[int] | None = None,
        shift: int = 0,
    ) -> tuple[dict[str, Any], Tensor]:
        """LeRobot's batch for frames ``index`` [b].

        Args:
            index: frames.
            actions: T offsets of the actions from the frame.
            observations: n offsets of the observations, for [b, n, ...]; None = the frame alone, [b, ...].
            shift: random shift of images in pixels, one offset per sample and camera.

        Returns:
            The batch (images float in [0, 1]) and the mask [b, T] of actions outside the episode, which repeat its
            first or last one.
        """
        first, last = self.first[index][:, None], self.last[index][:, None]
        ahead = index[:, None] + torch.tensor(list(actions))
        seen = index[:, None] + torch.tensor([0] if observations is None else list(observations))
        seen = torch.maximum(torch.minimum(seen, last), first)
        out: dict[str, Any] = {TASK: [self.task[i] for i in index.tolist()]}
        for key, array in self.arrays.items():
            if key == ACTION:
                out[key] = array[torch.maximum(torch.minimum(ahead, last), first)]
                continue
            value = self.pictures(key, seen, shift) if key.startswith(IMAGES) else array[seen]
            out[key] = value[:, 0] if observations is None else value
        return out, (ahead > last) | (ahead < first)

    def statistics(self) -> dict[str, dict[str, Tensor]]:
        """LeRobot's normalisation statistics of every key, for whichever mode a policy uses.

        An input that never changes gets a standard deviation of 1: a tiny one would turn the smallest deviation
        at run time into a huge number.
        """
        out = {}
        for key, array in self.arrays.items():
            if key.startswith(IMAGES):
                pick = torch.linspace(0, len(array) - 1, min(len(array), STATISTICS_FRAMES)).long()
                x = (array[pick].double() / 255).movedim(1, -1).flatten(0, -2)
                shape = (-1, 1, 1)
            else:
                x, shape = array.double(), (-1,)
            std = x.std(0, correction=0)
            constant = std < 1e-6
            fill = 1e-6 if key == ACTION else 1.0
            values = {
                "mean": x.mean(0),
                "std": torch.where(constant, torch.full_like(std, fill), std),
                "min": x.amin(0),
                "max": x.amax(0),
            }
            ranks = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
            ordered = x.sort(0).values
            values |= {name: ordered[round(q * (len(x) - 1))] for name, q in ranks.items()}
            out[key] = {name: value.float().reshape(shape) for name, value in values.items()}
        return out


def shifted(images: Tensor, index: Tensor, pixels: int) -> Tensor:
    """Images [b, n, 3, H, W] float in [0, 1] of frames ``index`` [b, n], moved by up to ``pixels`` (edge repeated).

    One offset per sample, the same for its n frames, from torch's global generator.
    """
    if not pixels:
        return images[index].float() / 255
    height, width = images.shape[-2:]
    rows = torch.arange(-pixels, height + pixels).clamp(0, height - 1)
    columns = torch.arange(-pixels, width + pixels).clamp(0, width - 1)
    moved = torch.empty(*index.shape, *images.shape[1:])
    # Sample by sample: one gather for the whole batch takes about a third longer.
    for sample, (dy, dx) in enumerate(torch.randint(0, 2 * pixels + 1, (len(index), 2)).tolist()):
        part = images[index[sample]][..., rows[dy : dy + height], :]
        moved[sample] = part[..., columns[dx : dx + width]]
    return moved.div_(255)
