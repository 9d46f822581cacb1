"""What a critic is worth, on episodes it has never seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vla_rl.critic.film import Judged
from vla_rl.critic.metrics import flat, precision_recall, reliability, voc, voc_f1
from vla_rl.critic.model import Critic, threshold_of
from vla_rl.critic.train import done_of
from vla_rl.critic.trajectories import Trajectory, first_successes
from vla_rl.errors import UserError

STILL = 0.05
"""Progress between a picture and itself that counts as none."""

SIGN_PAIRS = 20
"""Random pairs per trajectory whose sign is checked."""

REJECTED = 0.5
"""Value that a video keeps below when the instruction is another task's."""


@dataclass
class Curve:
    """One trajectory and what the critic makes of it.

    Attributes:
        trajectory: of the evaluation.
        judged: with no more than the instruction.
        shown: with a reference too; None where the evaluation has none.
        held_out: a task that the critic was not trained on.
    """

    trajectory: Trajectory
    judged: Judged
    shown: Judged | None
    held_out: bool


def evaluate(
    critic: Critic,
    trajectories: Sequence[Trajectory],
    references: Sequence[Trajectory] = (),
    progress: Callable[[int], None] | None = None,
) -> tuple[dict[str, Any], list[Curve]]:
    """Measure ``critic``.

    Args:
        critic: frozen.
        trajectories: episodes that it has not seen, of trained and held-out tasks; values count where an episode succeeded, up to
            its success; done counts everywhere.
        references: episodes to show, the first success of a task for all of that task; they are not measured.
        progress: called with the number of trajectories done.

    Returns:
        Summary (the keys of ``vla-rl critic eval``'s JSON) and curves.

    Raises:
        UserError: no success among them, or pictures of another size.
    """
    if not any(t.success for t in trajectories):
        raise UserError("no episode here succeeded: values are measured on those that do")
    shown = {task: critic.refer(t) for task, t in first_successes(references).items()}
    known = set(critic.notes["tasks"])
    tasks = sorted({t.task for t in trajectories} | known)
    curves, rows = [], []
    signs, still, mismatched, described = [], [], [], []
    accepted: list[float] = []
    believed: list[tuple[str, str]] = []
    generator = torch.Generator().manual_seed(0)
    for index, each in enumerate(trajectories):
        reference = shown.get(each.task)
        judged = critic.judge(each.pictures, each.task)
        with_it = critic.judge(each.pictures, each.task, reference) if reference is not None else None
        held_out = each.task not in known
        curves.append(Curve(each, judged, with_it, held_out))
        if each.success:
            until = each.pictures[: each.end + 1]
            rows.append(_orders(critic, until, each.task, reference, held_out))
            if not held_out:
                accepted.append(float(judged.value[-1] >= REJECTED))
                signs.append(_signs(critic, each, generator))
                still.append(_still(critic, each))
                if critic.notes.get("describes"):
                    described.append(float(critic.describe(until) == each.task))
                others = [t for t in tasks if t != each.task and t in known]
                if others:
                    asked = others[index % len(others)]
                    mismatched.append(_refused(critic, until, asked))
                    if not mismatched[-1]:
                        believed.append((each.task, asked))
        if progress is not None:
            progress(index + 1)
    summary = _order_summary(rows)
    trained = [t for t in trajectories if t.task in known]
    if trained:
        parts = [(threshold_of(critic.notes, t.task), *done_of(critic, [t])) for t in trained]
        chances, truth = torch.cat([part[1] for part in parts]), torch.cat([part[2] for part in parts])
        # Each task has its own threshold: what is above it counts as 1.
        said = torch.cat([(chance >= threshold).float() for threshold, chance, _ in parts])
        summary["done_precision"], summary["done_recall"] = precision_recall(said, truth, 0.5)
        summary["done_reliability"] = reliability(chances, truth)
    measured = {
        "pair_sign": signs,
        "stagnation": still,
        "mismatch_rejected": mismatched,
        "match_accepted": accepted,
        "described": described,
    }
    for name, values in measured.items():
        summary[name] = sum(values) / len(values) if values else None
    summary["mismatch_believed"] = [
        {"film": film, "asked": asked, "times": times}
        for (film, asked), times in Counter(believed).most_common()
    ]
    summary |= {"episodes": len(trajectories), "flat": flat([c.judged.value for c in curves])}
    return summary, curves


def _orders(
    critic: Critic, pictures: Tensor, task: str, reference: Tensor | None, held_out: bool
) -> dict[str, Any]:
    row: dict[str, Any] = {"task": task, "held_out": held_out}
    for name, given in (("", None), ("_reference", reference)):
        if name and reference is None:
            continue
        row[f"voc{name}"] = voc(critic.judge(pictures, task, given).work)
        row[f"voc_reversed{name}"] = voc(critic.judge(pictures.flip(0), task, given).work)
    return row


def _order_summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over trajectories; the field's names in the issue's spelling."""

    def mean(key: str, held_out: bool) -> float | None:
        values = [row[key] for row in rows if row["held_out"] == held_out and key in row]
        return sum(values) / len(values) if values else None

    out: dict[str, Any] = {
        "voc": mean("voc", False),
        "voc_reference": mean("voc_reference", False),
        "voc_reversed": mean("voc_reversed", False),
        "voc_held_out_tasks": mean("voc_reference", True),
        "voc_held_out_tasks_no_reference": mean("voc", True),
        "voc_held_out_tasks_reversed": mean("voc_reversed_reference", True),
    }
    if out["voc"] is not None:
        out["voc_f1"] = voc_f1(out["voc"], out["voc_reversed"])
    per_task: dict[str, dict[str, float]] = {}
    for task in sorted({row["task"] for row in rows}):
        mine = [row for row in rows if row["task"] == task]
        keys = [k for k in mine[0] if k.startswith("voc")]
        per_task[task] = {k: sum(row[k] for row in mine) / len(mine) for k in keys}
    return out | {"per_task": per_task}


def _signs(critic: Critic, each: Trajectory, generator: torch.Generator) -> float:
    """Share of random pairs, at least ``skip`` apart, whose direction is told."""
    skip = int(critic.notes["skip"])
    first = torch.randint(each.end + 1, (SIGN_PAIRS,), generator=generator)
    second = torch.randint(each.end + 1, (SIGN_PAIRS,), generator=generator)
    far = (first - second).abs() >= min(skip, max(1, each.end))
    if not far.any():
        return 1.0
    first, second = first[far], second[far]
    with torch.no_grad():
        seen = critic.look(each.pictures[torch.cat([first, second])])
    found = critic.progress(seen[: len(first)], seen[len(first) :], [each.task] * len(first))[0]
    return float((found.sign() == (second - first).sign()).float().mean())


def _still(critic: Critic, each: Trajectory) -> float:
    """Share of pictures that show no progress over themselves."""
    moments = torch.linspace(0, each.end, 5).round().long()
    with torch.no_grad():
        seen = critic.look(each.pictures[moments])
    found = critic.progress(seen, seen, [each.task] * len(moments))[0]
    return float((found.abs() < STILL).float().mean())


def _refused(critic: Critic, pictures: Tensor, task: str) -> float:
    """Whether a video is refused as one of another task: low value at the end, not done."""
    judged = critic.judge(pictures, task)
    return float(judged.value[-1] < REJECTED and judged.done[-1] < threshold_of(critic.notes, task))
