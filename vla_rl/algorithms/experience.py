"""What an off-policy learner remembers and how it sees: three buffers, one observation encoder.

Demonstrations, the base's warm-up transitions and online data are kept apart, so that each keeps its share of a
batch whatever the age of the run; the warm-up is never evicted (DAWN, arXiv 2602.10539: the value anchor).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from vla_rl.data.replay import ReplayBuffer
from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.keys import ELAPSED, ENV_STATE, IMAGES, INSTRUCTION, STATE, TASK
from vla_rl.nn.images import ImageEncoder, RandomShift
from vla_rl.nn.language import WIDTH, sentence_vectors
from vla_rl.nn.normalize import Normalizer


class Encoder(nn.Module):
    """Observation -> features [B, F]: standardised vectors, then an image vector when cameras are named.

    Args:
        spec: the environment.
        keys: observation keys; () = proprioception, the instruction and, in simulation, privileged state.
        image_features: width of the image vector per camera.
        kind: ``vit``, ``conv`` or ``keypoints``.
        shift: pixels of random shift in training.
        clock: observations also have ``ELAPSED``, and it is seen.

    Raises:
        UserError: a key that the environment does not have.
    """

    def __init__(
        self,
        spec: EnvSpec,
        keys: Sequence[str] = (),
        image_features: int = 64,
        kind: str = "vit",
        shift: int = 4,
        clock: bool = False,
    ) -> None:
        super().__init__()
        widths = {STATE: spec.state_dim, ENV_STATE: spec.env_state_dim, INSTRUCTION: WIDTH}
        self.keys = tuple(keys) or tuple(k for k, width in widths.items() if width)
        for key in self.keys:
            if not widths.get(key) and key not in spec.cameras:
                have = ", ".join([*(k for k, w in widths.items() if w), *spec.cameras])
                raise UserError(
                    f"algorithm.observation_keys names {key}, which environment {spec.id} does not have: "
                    f"choose from {have}"
                )
        if clock:
            self.keys, widths[ELAPSED] = (*self.keys, ELAPSED), 1
        self.vector_keys = tuple(k for k in self.keys if not k.startswith(IMAGES))
        self.image_keys = tuple(k for k in self.keys if k.startswith(IMAGES))
        width = sum(widths[k] for k in self.vector_keys)
        self.normalizer = Normalizer(width)
        self.shift = RandomShift(shift)
        self.images: ImageEncoder | None = None
        if self.image_keys:
            self.images = ImageEncoder({k: spec.cameras[k] for k in self.image_keys}, image_features, kind)
            width += self.images.features
        self.features = width

    def vectors(self, observation: Mapping[str, Tensor] | TensorDict) -> Tensor:
        """[B, V] the raw vectors side by side."""
        device = self.normalizer.mean.device
        if INSTRUCTION in self.vector_keys and INSTRUCTION not in observation.keys():
            observation = {**observation, INSTRUCTION: sentence_vectors(observation[TASK])}
        return torch.cat([observation[key].to(device) for key in self.vector_keys], dim=-1)

    def forward(
        self,
        observation: Mapping[str, Tensor] | TensorDict,
        augment: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """[B, F]; ``augment`` shifts the images at random."""
        parts = [self.normalizer(self.vectors(observation))] if self.vector_keys else []
        if self.images is not None:
            device = self.normalizer.mean.device
            pictures = {key: observation[key].to(device) for key in self.image_keys}
            if augment:
                pictures = {k: self.shift(v, generator) for k, v in pictures.items()}
            parts.append(self.images(pictures))
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


class Experience:
    """Online, warm-up and demonstration frames, and batches mixed from them.

    Args:
        capacity: online frames.
        warmup_steps: environment steps whose frames are kept for ever; 0 = none.
        demonstration_capacity: frames of demonstrations.
        rows: environment rows.
        keys: observation keys to keep (others are dropped: images are large).
        device: where they live.
        folder: for their files; None = in memory.
    """

    def __init__(
        self,
        capacity: int,
        warmup_steps: int,
        demonstration_capacity: int,
        rows: int,
        keys: Sequence[str],
        device: str | torch.device = "cpu",
        folder: Path | None = None,
    ) -> None:
        self.keys = tuple(keys)
        per_row = -(-warmup_steps // rows)
        # Closing frames come on top: an eighth covers episodes of eight steps or more.

        def buffer(name: str, capacity: int, rows: int) -> ReplayBuffer:
            return ReplayBuffer(capacity, rows, device=device, folder=folder and folder / name)

        self.warmup = buffer("warmup", rows * (per_row + per_row // 8 + 8), rows)
        self.online = buffer("online", capacity, rows)
        self.demonstrations = buffer("demonstrations", demonstration_capacity, 1)
        self.intervened = False
        """Whether anybody has ever taken over online."""
        self.buffers = {"warmup": self.warmup, "online": self.online, "demonstrations": self.demonstrations}

    def _kept(self, frames: TensorDict) -> TensorDict:
        observation = frames["observation"]
        for key in self.keys:
            if key not in observation.keys():
                raise UserError(
                    f"the frames have no {key}, which the algorithm reads: set collector.store_images for a "
                    "camera, or change algorithm.observation_keys"
                )
        kept = frames.copy()
        kept["observation"] = observation.select(*self.keys)  # type: ignore[attr-defined]  # pyright: ignore
        return kept

    def append(self, frames: TensorDict, rows: Tensor, warming: bool) -> None:
        """Store k frames of environment rows ``rows`` [k]."""
        self.intervened = self.intervened or bool(frames["intervention"].any())
        buffer = self.warmup if warming else self.online
        buffer.append(self._kept(frames), rows)
        if "forget" in frames.keys():  # a person has undone these steps on a robot
            buffer.forget(rows, frames["forget"])

    def end_warmup(self) -> None:
        """Close the warm-up's episodes in flight: what follows in these rows goes to online replay."""
        self.warmup.close_rows(torch.arange(self.warmup.rows))

    def add_demonstrations(self, frames: TensorDict, rows: Tensor | None = None) -> None:
        """Store whole episodes [T] in order, all in row 0."""
        rows = torch.zeros(len(frames), dtype=torch.long) if rows is None else rows
        self.demonstrations.append(self._kept(frames), rows)

    @property
    def can_sample(self) -> bool:
        """Whether ``batch`` has anything to draw from."""
        return _whole(self.online) or _whole(self.warmup) or len(self.demonstrations) > 0

    def batch(
        self,
        size: int,
        demonstration_share: float,
        anchor_share: float,
        n_step: int,
        gamma: float,
        generator: torch.Generator,
    ) -> TensorDict:
        """A batch [size]: demonstrations first, then warm-up, then online.

        Online frames at which somebody had taken over count as demonstrations too (HIL-SERL, arXiv 2410.21845).

        Args:
            demonstration_share: share of demonstrations, when there are any.
            anchor_share: least share of the warm-up in the rest; its natural share is its share of frames.
        """
        have_online, have_warmup = map(_whole, (self.online, self.warmup))
        taken = [(b, b.interventions()) for b in (self.warmup, self.online)] if self.intervened else []
        helped = sum(len(index) for _, index in taken)
        shown = round(size * demonstration_share) if len(self.demonstrations) or helped else 0
        if len(self.demonstrations) and not have_online and not have_warmup:
            shown = size  # filtered cloning before anything has succeeded
        rest = size - shown
        natural = len(self.warmup) / max(1, len(self.warmup) + len(self.online))
        anchored = round(rest * max(anchor_share, natural)) if have_warmup else 0
        if not have_online and have_warmup:
            anchored = rest
        parts = []
        if helped and shown:
            from_demonstrations = round(
                shown * len(self.demonstrations) / (helped + len(self.demonstrations))
            )
            left, shown = shown - from_demonstrations, from_demonstrations
            early = round(left * len(taken[0][1]) / helped)
            for (buffer, index), count in zip(taken, (early, left - early), strict=True):
                if count:
                    pick = torch.randint(len(index), (count,), generator=generator, device=index.device)
                    parts.append(buffer.gather(index[pick], n_step, gamma))
        counts = ((self.demonstrations, shown), (self.warmup, anchored), (self.online, rest - anchored))
        return join(parts + [b.sample(n, n_step, gamma, generator) for b, n in counts if n])

    def observations(self) -> list[TensorDict]:
        """Observations of warm-up, online and demonstration frames (what the normaliser learns from)."""
        return [
            b.storage._storage["observation"][b.starts()] for b in self.buffers.values() if len(b.starts())
        ]

    def save(self, folder: Path) -> None:
        """All buffers, under their names."""
        for name, buffer in self.buffers.items():
            buffer.save(folder / name)

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote."""
        for name, buffer in self.buffers.items():
            buffer.load(folder / name)
        self.intervened = any(len(b.interventions()) for b in (self.warmup, self.online))


def _whole(buffer: ReplayBuffer) -> bool:
    """Whether it is certain to hold a complete transition."""
    return len(buffer) > 2 * buffer.rows


def join(parts: list[TensorDict]) -> TensorDict:
    """Concatenate batches along the first dimension (TensorDict's own ``cat`` takes several times as long)."""
    if len(parts) == 1:
        return parts[0]
    size = torch.Size([sum(len(p) for p in parts)])

    def cat(dicts: list[dict]) -> TensorDict:
        values = {}
        for key, first in dicts[0].items():
            items = [d[key] for d in dicts]
            values[key] = (
                torch.cat(items) if isinstance(first, Tensor) else cat([dict(i.items()) for i in items])
            )
        return TensorDict._new_unsafe(values, batch_size=size)

    return cat([dict(p.items()) for p in parts])
