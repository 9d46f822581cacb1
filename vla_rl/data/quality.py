"""How smooth, uniform and varied a data set of demonstrations is (as in "Beyond Human Demonstrations", arXiv 2509.19752).

Everything is measured on ``observation.state``, each number of it divided by its range over all data sets compared, so that
metres and radians count alike and two data sets of one task can be compared. Differences between data sets of different
robots mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vla_rl.data.dataset import Episode, dataset_info, load_episodes
from vla_rl.errors import UserError
from vla_rl.keys import ACTION, STATE

PHASES = 50
"""Points in [0, 1] of an episode at which episodes are compared."""

CELLS = 20
"""Cells along each of the two axes on which coverage is counted."""


@dataclass
class Quality:
    """One data set.

    Attributes:
        episodes: how many.
        success: share of episodes that succeeded; None when it was not recorded.
        length: mean steps of an episode.
        length_std: their standard deviation.
        jerk: mean squared jerk, 1 / s^6 (third difference of the state, per range and rate^3).
        action_jerk: mean squared second difference of the action, per its range.
        path: mean length of an episode's path, in ranges.
        variance: mean variance across episodes of one task at equal phase, in squared ranges.
        coverage: share of the cells that any of the data sets visits, in the plane of the two main directions.
    """

    episodes: int
    success: float | None
    length: float
    length_std: float
    jerk: float
    action_jerk: float
    path: float
    variance: float
    coverage: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare(folders: Sequence[Path]) -> list[Quality]:
    """The quality of each data set, on common scales.

    Args:
        folders: LeRobotDataset folders of one robot.

    Raises:
        UserError: one that is none, or whose state or action has another size.
    """
    sources = [load_episodes(folder, images=False) for folder in folders]
    rates = [float(dataset_info(folder)["fps"]) for folder in folders]
    for folder, episodes in zip(folders, sources, strict=True):
        for key in (STATE, ACTION):
            if not episodes or key not in episodes[0].data:
                raise UserError(f"{folder} has no {key}: nothing to compare")
            mine, first = episodes[0].data[key].shape[1:], sources[0][0].data[key].shape[1:]
            if mine != first:
                raise UserError(
                    f"{folder}: {key} has shape {tuple(mine)}, that of {folders[0]} {tuple(first)}"
                )
    states = [torch.cat([e.data[STATE].float() for e in episodes]) for episodes in sources]
    scale = _range(torch.cat(states))
    action_scale = _range(torch.cat([e.data[ACTION].float() for s in sources for e in s]))
    planes = _cells([x / scale for x in states])
    visited = len(set().union(*planes))
    return [
        _quality(episodes, scale, action_scale, rate, len(cells) / visited)
        for episodes, rate, cells in zip(sources, rates, planes, strict=True)
    ]


def _range(x: Tensor) -> Tensor:
    """[D] spread of each number; those that never change count nothing."""
    spread = x.amax(0) - x.amin(0)
    return torch.where(spread > 1e-6, spread, torch.full_like(spread, torch.inf))


def _cells(states: list[Tensor]) -> list[set[tuple[int, int]]]:
    """Cells that each source visits in the plane of the two main directions of all of them."""
    every = torch.cat(states)
    centre = every.mean(0)
    _, _, directions = torch.linalg.svd(
        (every - centre)[:: max(1, len(every) // 20_000)], full_matrices=False
    )
    planes = [(x - centre) @ directions[:2].T for x in states]
    every = torch.cat(planes)
    low, high = every.amin(0), every.amax(0)
    found = []
    for plane in planes:
        cells = ((plane - low) / (high - low).clamp(min=1e-9) * CELLS).long().clamp(max=CELLS - 1)
        found.append({tuple(cell) for cell in cells.tolist()})
    return found  # type: ignore[return-value]


def _quality(
    episodes: Sequence[Episode], scale: Tensor, action_scale: Tensor, rate: float, coverage: float
) -> Quality:
    paths = [e.data[STATE].float() / scale for e in episodes]
    actions = [e.data[ACTION].float() / action_scale for e in episodes]
    lengths = torch.tensor([float(e.length) for e in episodes])
    wins = [e.success for e in episodes if e.success is not None]
    return Quality(
        episodes=len(episodes),
        success=sum(wins) / len(wins) if wins else None,
        length=float(lengths.mean()),
        length_std=float(lengths.std(correction=0)),
        jerk=_mean_square([x.diff(n=3, dim=0) * rate**3 for x in paths if len(x) > 3]),
        action_jerk=_mean_square([x.diff(n=2, dim=0) for x in actions if len(x) > 2]),
        path=float(torch.stack([x.diff(dim=0).norm(dim=1).sum() for x in paths]).mean()),
        variance=_variance(episodes, paths),
        coverage=coverage,
    )


def _mean_square(parts: Sequence[Tensor]) -> float:
    """Mean over episodes of the mean square of each."""
    values = [part.square().sum(1).mean() for part in parts]
    return float(torch.stack(values).mean()) if values else 0.0


def _variance(episodes: Sequence[Episode], paths: Sequence[Tensor]) -> float:
    """Across the episodes of each task, at equal phase."""
    tasks: dict[str, list[Tensor]] = {}
    for episode, path in zip(episodes, paths, strict=True):
        even = functional.interpolate(path.T[None], PHASES, mode="linear", align_corners=True)[0].T
        tasks.setdefault(episode.task_id or episode.task, []).append(even)
    spreads = [torch.stack(group).var(0, correction=0).sum(1).mean() for group in tasks.values()]
    return float(torch.stack(spreads).mean())
