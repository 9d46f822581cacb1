"""Rank recorded episodes and mask frames by what a critic sees in them; cloning can leave the rest out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vla_rl.critic.metrics import flat, voc
from vla_rl.critic.model import Critic
from vla_rl.critic.trajectories import Trajectory, read_trajectories
from vla_rl.data.progress import named, write_masks
from vla_rl.errors import UserError


@dataclass
class Score:
    """Of one episode.

    Attributes:
        name: where it comes from.
        task: its instruction.
        voc: order correlation of its values with time.
        value: at its end.
        done: chance that its last picture shows success.
        negative: share of its pairs that lead back.
        kept: whether it passes.
    """

    name: str
    task: str
    voc: float
    value: float
    done: float
    negative: float
    kept: bool


def score(
    critic: Critic,
    folders: Sequence[Path],
    out: Path,
    *,
    camera: str | None = None,
    least_voc: float = 0.5,
    least_done: float = 0.5,
    drop: float = 0.1,
    progress: Callable[[int], None] | None = None,
) -> list[Score]:
    """Judge every episode of some data sets; write the mask that ``vla-rl pretrain progress=`` reads, and the ranking.

    Args:
        critic: frozen.
        folders: data sets, told apart by their names.
        out: folder to be.
        camera: name; None = each data set's first.
        least_voc: episodes with a lower order correlation are left out.
        least_done: episodes whose last picture is less surely done are left out.
        drop: frames before a pair that leads back by more are left out.
        progress: called with the number of episodes done.

    Raises:
        UserError: ``out`` exists, two data sets of one name, or a critic that says the same to everything.
    """
    names = named(folders, out)
    parts = [read_trajectories([folder], camera, scratch=out.absolute().parent) for folder in folders]
    seen = 0
    scores: list[Score] = []
    curves: list[Tensor] = []
    tensors: dict[str, Tensor] = {}
    for name, part in zip(names, parts, strict=True):
        values, masks = [], []
        for each in part:
            judged = critic.judge(each.pictures, each.task)
            curves.append(judged.value)
            order = voc(judged.work)
            passes = order >= least_voc and float(judged.done[-1]) >= least_done
            scores.append(
                Score(
                    each.name,
                    each.task,
                    order,
                    float(judged.value[-1]),
                    float(judged.done[-1]),
                    float((judged.pairs < 0).float().mean()),
                    passes,
                )
            )
            value, mask = _spread(each, judged.moments, judged.value, judged.pairs, drop)
            values.append(value)
            masks.append(mask & passes)
            seen += 1
            if progress is not None:
                progress(seen)
        tensors |= {f"{name}/value": torch.cat(values), f"{name}/kept": torch.cat(masks)}
    if flat(curves):
        raise UserError(
            "the critic says the same to every picture of these episodes: it does not know this camera or arm (train it "
            "on some of them)"
        )
    settings = {"least_voc": least_voc, "least_done": least_done, "drop": drop}
    write_masks(out, tensors, {"settings": settings, "episodes": [s.__dict__ for s in scores]})
    return scores


def _spread(
    each: Trajectory, moments: Tensor, value: Tensor, pairs: Tensor, drop: float
) -> tuple[Tensor, Tensor]:
    """Value and mask of every frame with an action, between judged moments as at the earlier one."""
    frames = torch.arange(each.steps)
    place = (torch.searchsorted(moments, frames, right=True) - 1).clamp(0, len(pairs) - 1)
    return value[place], pairs[place] >= -drop
