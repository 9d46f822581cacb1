"""Progress of recorded episodes by offline reinforcement learning, and the samples that lose some (GR-RL, arXiv 2512.01801).

A categorical value of (state, instruction) is learned by temporal differences from sparse success over all episodes, failed ones
too. With a discount it says how soon success comes, 1 at the goal and 0 where nothing leads there. A sample whose value falls by
more than ``drop`` within the next chunk shows how not to do it: cloning leaves it out.

Otherwise than GR-RL: a value of states instead of a Q-function of chunks, vectors instead of pictures, and failures as they were
recorded instead of cut at keyframes that a person has marked.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from vla_rl.algorithms.descent import descend
from vla_rl.data.dataset import Episode, load_episodes
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE
from vla_rl.nn.categorical import mean_of, two_hot
from vla_rl.nn.ensemble import mlp, polyak
from vla_rl.nn.language import sentence_vector
from vla_rl.nn.normalize import Normalizer
from vla_rl.runtime.metrics import write_json
from vla_rl.runtime.tensors import write_tensors

FILE, NOTES = "progress.safetensors", "progress.json"


@dataclass
class ProgressConfig:
    """Settings.

    Attributes:
        gamma: discount per step; success N steps away is worth gamma^N.
        n_step: steps after which a target bootstraps.
        horizon: steps of a chunk: how far ahead a fall counts.
        drop: fall of the value that is too much.
        steps: optimiser steps.
        batch_size: transitions per step.
        lr: Adam step size.
        bins: of the value's distribution.
        tau: of the target network.
        seed: of weights and batches.
    """

    gamma: float = 0.98
    n_step: int = 10
    horizon: int = 8
    drop: float = 0.03
    steps: int = 3000
    batch_size: int = 512
    lr: float = 1e-3
    bins: int = 101
    tau: float = 0.02
    seed: int = 0


def check(config: ProgressConfig) -> None:
    """Refuse settings that mean nothing.

    Raises:
        UserError: named.
    """
    if not 0 < config.gamma < 1:
        raise UserError(f"gamma={config.gamma} must lie between 0 and 1: the value is how soon success comes")
    for name in ("n_step", "horizon", "steps", "batch_size", "bins"):
        if getattr(config, name) < (2 if name == "bins" else 1):
            raise UserError(f"{name}={getattr(config, name)} is too small")
    if config.drop < 0:
        raise UserError(f"drop={config.drop} must not be negative")


def learn(
    episodes: Sequence[Episode], config: ProgressConfig, progress: Callable[[int, float], None] | None = None
) -> list[Tensor]:
    """The value [T] of every frame of every episode.

    Args:
        episodes: of one robot, with success recorded, some of them successful.
        config: settings.
        progress: called with (step, loss).

    Raises:
        UserError: no success recorded, or none.
    """
    check(config)
    outcomes = [e.success for e in episodes]
    if any(s is None for s in outcomes) or not any(outcomes):
        raise UserError(
            "progress is learned from success: record next.success, with some episodes that succeed"
        )
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    features = [_features(e) for e in episodes]
    seen = torch.cat(features)
    normalizer = Normalizer(seen.shape[1])
    normalizer.update(seen)
    normalizer.freeze()
    seen = normalizer(seen)
    after, power, goal, cut = _targets(episodes, config.n_step)
    discount = config.gamma**power
    network = mlp(seen.shape[1], [256, 256], config.bins, layer_norm=True)
    target = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    usable = torch.nonzero(~cut).squeeze(1)
    for step in range(config.steps):
        pick = usable[torch.randint(len(usable), (config.batch_size,), generator=generator)]
        with torch.no_grad():
            ahead = torch.where(goal[pick].isnan(), mean_of(target(seen[after[pick]])), goal[pick])
            wanted = two_hot(discount[pick] * ahead, config.bins)
        loss = functional.cross_entropy(network(seen[pick]), wanted)
        descend(optimizer, loss)
        polyak(target, network, config.tau)
        if progress is not None:
            progress(step + 1, loss.item())
    with torch.no_grad():
        values = mean_of(network(seen))
    return list(values.split([len(f) for f in features]))


def kept(value: Tensor, horizon: int, drop: float) -> Tensor:
    """[T] bool: frames whose value [T] does not fall by more than ``drop`` within the next ``horizon`` steps."""
    last = value[-1:].expand(horizon)
    ahead = torch.cat([value, last]).unfold(0, horizon + 1, 1)[: len(value)]
    return value - ahead.amin(1) <= drop


def _features(episode: Episode) -> Tensor:
    vectors = [episode.data[k] for k in (STATE, ENV_STATE) if k in episode.data]
    words = sentence_vector(episode.task).expand(len(vectors[0]), -1)
    return torch.cat([*vectors, words], 1).float()


def _targets(episodes: Sequence[Episode], n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of all frames [N]: the frame ``n`` steps on or the episode's last, how many steps that is, what its value is known
    to be (NaN: not; the network says), and whether there is no target at all.
    """
    after, power, goal, cut, start = [], [], [], [], 0
    for episode in episodes:
        count = len(episode.data[STATE])
        index = torch.arange(count)
        ahead = (index + n).clamp(max=count - 1)
        known = torch.full((count,), float("nan"))
        lost = torch.zeros(count, dtype=torch.bool)
        truncated = episode.data.get("next.truncated")
        if episode.success:
            known[ahead == count - 1] = 1.0
        elif truncated is not None and not bool(truncated[-1]):
            known[ahead == count - 1] = 0.0  # it failed for good
        else:
            lost[-1] = True  # a time limit says nothing of what would have come
        after.append(start + ahead)
        power.append(ahead - index)
        goal.append(known)
        cut.append(lost)
        start += count
    return torch.cat(after), torch.cat(power), torch.cat(goal), torch.cat(cut)


def write(
    folders: Sequence[Path], config: ProgressConfig, out: Path, progress: Any = None
) -> dict[str, float]:
    """Value and mask of every frame of some data sets into ``out``; returns the share that each loses.

    Raises:
        UserError: ``out`` exists, two data sets of one name, or what ``learn`` refuses.
    """
    names = named(folders, out)
    parts = [load_episodes(folder, images=False) for folder in folders]
    values = iter(learn([e for part in parts for e in part], config, progress))
    tensors: dict[str, Tensor] = {}
    for name, part in zip(names, parts, strict=True):
        mine = [next(values) for _ in part]
        mask = torch.cat([kept(v, config.horizon, config.drop) for v in mine])
        tensors |= {f"{name}/value": torch.cat(mine), f"{name}/kept": mask}
    return write_masks(out, tensors, {"settings": asdict(config)})


def named(folders: Sequence[Path], out: Path) -> list[str]:
    """The names that data sets are told apart by.

    Raises:
        UserError: ``out`` exists, or two of one name.
    """
    if out.exists():
        raise UserError(f"{out} exists: choose another out=")
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise UserError(f"data sets are told apart by their names, and two are the same: {', '.join(names)}")
    return names


def write_masks(out: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> dict[str, float]:
    """What ``read_mask`` reads, into the new folder ``out``; returns the share of its frames that each data set loses.

    Args:
        out: folder.
        tensors: ``<name>/value`` float and ``<name>/kept`` bool [N] of each data set's frames.
        notes: kept beside them.
    """
    names = [key.removesuffix("/kept") for key in tensors if key.endswith("/kept")]
    lost = {name: 1 - float(tensors[f"{name}/kept"].float().mean()) for name in names}
    out.mkdir(parents=True)
    write_tensors(out / FILE, tensors, f"progress to {out}")
    write_json(out / NOTES, {**notes, "dropped": lost})
    return lost


def read_mask(out: Path, folders: Sequence[Path]) -> Tensor:
    """The mask [N] of all frames of ``folders``, one data set after the other.

    Raises:
        UserError: ``out`` is none of ``vla-rl data progress``, or knows another data set.
    """
    if not (out / FILE).is_file():
        raise UserError(f"{out} holds no progress: make it with vla-rl data progress")
    tensors = load_file(out / FILE)
    known = json.loads((out / NOTES).read_text())["dropped"]
    missing = [f.name for f in folders if f"{f.name}/kept" not in tensors]
    if missing:
        raise UserError(f"{out} does not know the data set {missing[0]}: it has {', '.join(known)}")
    return torch.cat([tensors[f"{folder.name}/kept"] for folder in folders])
