"""From the costs of single items to the loads of a layout's parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Costs:
    """Measured on one core (or one GPU, where the policy and the learner are on it); seconds unless it says otherwise.

    Attributes:
        step: a control step of one simulator.
        look: the pictures of one row, rendered.
        reset: a control step's share of beginning episodes.
        acting: a control step's residual policy, frames and bookkeeping.
        pack: a control step's share of packing a batch of frames.
        take: a control step's share of taking it: unpacked, journalled, in replay.
        bytes: a control step's share of the message.
        update: one update.
        utd: updates per control step.
        publish: a new version of the weights.
        delta: bytes of such a version's changes.
        horizon: control steps per question to the base policy.
        question: rows of a question -> of its one forward pass.
        picture: bytes of the pictures in a question.
    """

    step: float
    look: float
    reset: float
    acting: float
    pack: float
    take: float
    bytes: float
    update: float
    utd: float
    publish: float
    delta: float
    horizon: int
    question: dict[int, float]
    picture: int

    @property
    def per_row(self) -> float:
        """Seconds of a question's row in the batch size that is best."""
        return min(seconds / rows for rows, seconds in self.question.items())


def plan(costs: Costs, *, collectors: int, hz: float | None, learners: int, inference: int) -> dict[str, Any]:
    """What a layout asks for and what it makes of it.

    Every part's ``load`` is the share of its time that the layout's full speed would take; above 1 the part is full, and
    the layout runs at full speed divided by the largest.

    Args:
        costs: of one item each.
        collectors: one simulator or robot each.
        hz: control rate of robots; None = simulators, as fast as a core goes.
        learners: that share each update.
        inference: workers that answer questions.
    """
    simulated = costs.step + costs.reset + costs.look / costs.horizon
    own = simulated + costs.acting + costs.pack
    rate = collectors * (hz if hz is not None else 1 / own)
    load = {
        "collectors": rate * (costs.acting + costs.pack) / collectors if hz else 1.0,
        "inference workers": rate / costs.horizon * costs.per_row / inference,
        "learners, taking frames": rate * costs.take / learners,
        "learners, updates": rate * costs.utd * costs.update / learners,
    }
    worst = max(load, key=lambda part: load[part])
    reached = rate / max(1.0, load[worst])
    return {
        "collectors": collectors,
        "hz": hz,
        "learners": learners,
        "inference": inference,
        "wanted": rate,
        "load": load,
        "full first": worst,
        "reached": reached,
        "most updates per step": learners
        * (1 - min(1.0, load["learners, taking frames"]))
        / (rate * costs.update),
        "frames MB/s": rate * costs.bytes / 1e6,
        "pictures MB/s": rate / costs.horizon * costs.picture / 1e6,
        "weights MB/s": collectors * costs.delta / 1e6,
    }


def page(costs: Costs, layouts: dict[str, dict[str, Any]]) -> str:
    """Costs and plan in words."""
    asked = ", ".join(f"{1e3 * s:.1f} ms for {rows}" for rows, s in costs.question.items())
    lines = [
        "# Scaling: what one item costs here, and what is full first elsewhere",
        "",
        "`vla-rl bench scaling`, one thread: measured through the classes that a run on Ray consists of. The plan below is "
        "arithmetic on these costs, not a measurement: a learner or an inference worker is one core of this machine where a cluster "
        "would give it a GPU. On a machine that has one the same command measures that (`train` with `policy.device=cuda`, "
        "`algorithm.device=cuda`).",
        "",
        "| item | cost |",
        "|---|---|",
        f"| control step of the simulator | {1e3 * costs.step:.2f} ms |",
        f"| beginning episodes, per control step | {1e3 * costs.reset:.2f} ms |",
        f"| rendering, per question to the base policy | {1e3 * costs.look:.1f} ms |",
        f"| residual policy, frames, bookkeeping, per control step | {1e3 * costs.acting:.2f} ms |",
        f"| packing, per control step | {1e3 * costs.pack:.3f} ms, {costs.bytes:.0f} bytes |",
        f"| taking: unpacked, journalled, in replay, per control step | {1e3 * costs.take:.3f} ms |",
        f"| update ({costs.utd:g} per control step) | {1e3 * costs.update:.1f} ms |",
        f"| version of the weights | {1e3 * costs.publish:.1f} ms, {costs.delta / 1e3:.0f} kB of changes |",
        f"| question to the base policy (one per {costs.horizon} control steps), rows | {asked} |",
        "",
        "| layout | steps/s wanted | "
        + " | ".join(next(iter(layouts.values()))["load"])
        + " | full first | steps/s reached | updates per step that fit |",
        "|---|---|" + "---|" * (len(next(iter(layouts.values()))["load"]) + 3),
    ]
    for name, found in layouts.items():
        loads = " | ".join(f"{value:.2f}" for value in found["load"].values())
        fits = found["most updates per step"]
        lines.append(
            f"| {name} | {found['wanted']:.0f} | {loads} | {found['full first']} | {found['reached']:.0f} | {fits:.3f} |"
        )
    lines += [
        "",
        "A load is the share of a part's time at the speed that the collectors alone would reach; above 1 that part is full and "
        "collectors wait for it. *Updates per step that fit* is what the learners could make beside taking all frames: less than "
        f"`utd` ({costs.utd:g}) means that either the robots wait or `utd` goes down.",
        "",
        "| layout | frames, MB/s | pictures to inference workers, MB/s | weights, MB/s (one version a second) |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {found['frames MB/s']:.2f} | {found['pictures MB/s']:.2f} | {found['weights MB/s']:.2f} |"
        for name, found in layouts.items()
    ]
    return "\n".join([*lines, ""])
