"""What a critic makes of a whole film: value and done of its moments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vla_rl.critic.value import ValueFilter
from vla_rl.errors import UserError


@dataclass
class Judged:
    """What a critic makes of a trajectory of T pictures.

    Attributes:
        moments: [M] indices of the pictures that were judged, first and last among them.
        value: [M] 0 ... 1, 0 at the first.
        work: [M] what the value is made of (``vla_rl.critic.value.work_of``); below 0 where it is further from done than at the first.
        std: [M] standard deviation of the value.
        pairs: [M - 1] progress from one judged moment to the next.
        done: [M] chance that the task is done.
    """

    moments: Tensor
    value: Tensor
    work: Tensor
    std: Tensor
    pairs: Tensor
    done: Tensor


def judge(
    critic: Any, pictures: Tensor, task: str, reference: Tensor | None = None, skip: int | None = None
) -> Judged:
    """Value and done of every ``skip``-th picture [T, 3, H, W] uint8 and the last one.

    Args:
        critic: ``Critic``, or what looks and answers as it does (a server's client, one of LeRobot's reward models).
        pictures: of one episode.
        task: the instruction.
        reference: looked at (``Critic.refer``).
        skip: None = as the critic was trained.

    Raises:
        UserError: fewer than two pictures, or another size.
    """
    if len(pictures) < 2:
        raise UserError(f"{len(pictures)} pictures: progress needs at least two")
    skip = skip or int(critic.notes["skip"])
    moments = torch.arange(0, len(pictures), skip)
    if moments[-1] != len(pictures) - 1:
        moments = torch.cat([moments, torch.tensor([len(pictures) - 1])])
    with torch.no_grad():
        seen = critic.look(pictures[moments])
    tasks = [task] * (len(moments) - 1)
    pair = critic.progress(seen[:-1], seen[1:], tasks, reference)
    whole = critic.progress(seen[:1].expand(len(tasks), -1, -1), seen[1:], tasks, reference)
    track = ValueFilter(1)
    values, work, spread = [0.0], [0.0], [0.0]
    row = torch.zeros(1, dtype=torch.long)
    for i in range(len(tasks)):
        now = track.update(
            row, (pair[0][i : i + 1], pair[1][i : i + 1]), (whole[0][i : i + 1], whole[1][i : i + 1])
        )
        values.append(float(now))
        work.append(float(track.work))
        spread.append(float(track.std))
    done = critic.done(seen, [task] * len(moments), reference)
    return Judged(moments, torch.tensor(values), torch.tensor(work), torch.tensor(spread), pair[0], done)
