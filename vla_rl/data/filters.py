"""Choose among recorded episodes and frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from vla_rl.data.dataset import Episode
from vla_rl.errors import UserError
from vla_rl.keys import STATE


def successes(episodes: Sequence[Episode]) -> list[Episode]:
    """Only the episodes recorded as successful.

    Raises:
        UserError: success was not recorded, or there is none.
    """
    if any(e.success is None for e in episodes):
        raise UserError("the data set has no next.success: cannot choose successful episodes")
    kept = [e for e in episodes if e.success]
    if not kept:
        raise UserError(f"none of the {len(episodes)} episodes succeeded: record more or a better policy")
    return kept


def shortest(episodes: Sequence[Episode], count: int, per_task: bool = False) -> list[Episode]:
    """The ``count`` shortest episodes (of each instruction when ``per_task``), in their original order."""
    groups: dict[str, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(episode.task if per_task else "", []).append(episode)
    chosen = {id(e) for group in groups.values() for e in sorted(group, key=lambda e: e.length)[:count]}
    return [e for e in episodes if id(e) in chosen]


def drop_idle(episode: Episode, min_motion: float = 1e-4) -> Episode:
    """Without the frames during which nothing moved (a person thinking): state changes below ``min_motion``.

    The frame that ends the episode stays. For behaviour cloning; time steps are no longer uniform, so do not
    compute returns from the result.

    Args:
        episode: T frames.
        min_motion: largest change of any number of ``observation.state`` to the next frame that is idle.
    """
    state = episode.data[STATE]
    moved = torch.ones(episode.length, dtype=torch.bool)
    if episode.length > 1:
        moved[:-1] = (state[1:] - state[:-1]).abs().amax(dim=1) > min_motion
    return dataclasses.replace(episode, data={key: value[moved] for key, value in episode.data.items()})


def split(episodes: Sequence[Episode], fraction: float, seed: int = 0) -> tuple[list[Episode], list[Episode]]:
    """(training, held out) episodes, ``fraction`` of each instruction's held out at random."""
    if not 0 <= fraction < 1:
        raise UserError(f"held-out fraction {fraction} must be in [0, 1)")
    generator = torch.Generator().manual_seed(seed)
    groups: dict[str, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(episode.task, []).append(episode)
    held: set[int] = set()
    for task in sorted(groups):
        order = torch.randperm(len(groups[task]), generator=generator).tolist()
        held |= {id(groups[task][i]) for i in order[: round(fraction * len(order))]}
    return [e for e in episodes if id(e) not in held], [e for e in episodes if id(e) in held]
