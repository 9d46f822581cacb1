"""What a soak found: journals read from outside, memory by quarters, and the page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from vla_rl.data.journal import recover
from vla_rl.learner.messages import unflatten, unpack
from vla_rl.runtime.distributed.batches import BATCHES, TABLE
from vla_rl.runtime.metrics import write_json, write_text
from vla_rl.runtime.stages import written


class Audit:
    """Every journalled batch of a run, read from second names of the journals, which outlive their deletion.

    Args:
        run: folder of the run, in which each learner keeps its journals in a folder of its own.
        links: folder for the second names, on the same file system.
    """

    def __init__(self, run: Path, links: Path) -> None:
        self.run, self.links = run, links
        links.mkdir(parents=True, exist_ok=True)
        self.steps: dict[tuple[int, int, int], int] = {}
        """(collector, generation, number) -> environment steps in that batch."""
        self.twice: list[tuple[int, int, int]] = []
        self._named: dict[str, Path] = {}
        """Second name -> the learner's own, of all that have not been read yet."""
        self._done: set[str] = set()

    def look(self, final: bool = False) -> None:
        """Name what is new; read what the learner has deleted, which is whole by then (``final``: all)."""
        for path in self.run.glob(f"{BATCHES}*/*.journal"):
            name = f"{path.parent.name}-{path.name}"
            if name not in self._named and name not in self._done:
                try:
                    os.link(path, self.links / name)
                except FileNotFoundError:  # deleted since
                    continue
                self._named[name] = path
        for name, path in list(self._named.items()):
            if final or not path.exists():
                self._read(self.links / name)
                (self.links / name).unlink()
                self._done.add(name)
                del self._named[name]

    def _read(self, path: Path) -> None:
        for record in recover(path):
            at: tuple[int, int, int] = tuple(int(v) for v in record["at"])  # type: ignore[assignment]
            if at[2] < 0:  # somebody joined
                continue
            if at in self.steps:
                self.twice.append(at)
            _, tensors, fields = unpack(record["message"].tobytes())
            self.steps[at] = int((~unflatten(tensors, fields["size"])["final"]).sum())

    def missing(self) -> list[tuple[int, int, int]]:
        """Batches before which the same collector's same life has none, though they are not its first."""
        return [at for at in self.steps if at[2] and (at[0], at[1], at[2] - 1) not in self.steps]

    def problems(self, counted: dict[str, Any]) -> list[str]:
        """Where the journals and a checkpoint's own account (``trainer.json``) differ, and what is wrong in the journals."""
        found = [f"batch {at} (collector, life, number) stands twice in the journals" for at in self.twice]
        found += [
            f"batch {at} (collector, life, number) follows one that is missing" for at in self.missing()
        ]
        for index, slot in enumerate(counted.get(TABLE, [])):
            mine = sum(steps for at, steps in self.steps.items() if at[0] == index)
            if mine != slot["steps"]:
                found.append(f"collector {index}: {mine} steps in the journals, {slot['steps']} counted")
        return found


def growth(rows: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Medians of the second and the last quarter of the time (the first fills buffers), and how much more the last is."""
    end = max(at for at, _ in rows)
    second = [value for at, value in rows if end / 4 <= at < end / 2]
    last = [value for at, value in rows if at >= 3 * end / 4]
    if not second or not last:
        return {}
    return {"second": median(second), "last": median(last), "growth": median(last) / median(second) - 1}


def write_report(config: Any, soak: Any, audit: Audit, counted: dict[str, Any]) -> int:
    """``results.json`` and ``README.md``; 1 when there is a problem."""
    kinds = sorted({kind for _, kind, _ in soak.memory})
    memory = {kind: growth([(at, mib) for at, k, mib in soak.memory if k == kind]) for kind in kinds}
    memory["run folder on disk"] = growth(soak.disk)
    problems = [*soak.problems, *audit.problems(counted)]
    for kind, found in memory.items():
        if found and found["growth"] > config.within:
            problems.append(
                f"{kind}: {found['growth']:.1%} more memory at the end than in the second quarter"
            )
    pauses: dict[str, list[float]] = {}
    for kind, seconds in soak.pauses:
        pauses.setdefault(kind, []).append(seconds)
    progress = counted.get("progress", {})
    result = {
        "minutes": soak.seconds / 60,
        "steps": progress.get("steps", 0),
        "episodes": progress.get("episodes", 0),
        "batches": len(audit.steps),
        "lives": len({at[:2] for at in audit.steps}),
        "killed": soak.killed,
        "pauses": {k: {"median": median(v), "longest": max(v)} for k, v in pauses.items()},
        "memory": memory,
        "problems": problems,
    }
    out = Path(config.out)
    write_json(out / "results.json", result)
    text = written(page(result), out)
    write_text(out / "README.md", text)
    print(text)
    return 1 if problems else 0


def page(result: dict[str, Any]) -> list[str]:
    """The report in words."""
    killed = ", ".join(f"{count} {kind}" for kind, count in sorted(result["killed"].items())) or "none"
    return [
        f"# {result['minutes']:.0f} minutes of training on Ray, processes killed",
        "",
        f"`vla-rl bench soak`: {result['steps']} environment steps, {result['episodes']} episodes; killed (SIGKILL, one after the "
        f"other, chosen at random): {killed}. *driver* is `vla-rl train` itself, which is then resumed.",
        "",
        f"The learner's journals, read from outside: {result['batches']} batches of {result['lives']} collectors' lives.",
        "",
        *(f"- **{problem}**" for problem in result["problems"]),
        *([] if result["problems"] else ["None stands twice, none is missing, every step is counted once."]),
        "",
        "| killed | seconds to the next new step in the log: median | longest |",
        "|---|---|---|",
        *(f"| {k} | {v['median']:.0f} | {v['longest']:.0f} |" for k, v in sorted(result["pauses"].items())),
        "",
        "Memory of a process (what it shares with nobody), medians over the second and the last quarter of the time:",
        "",
        "| process | second quarter, MiB | last quarter, MiB | growth |",
        "|---|---|---|---|",
        *(
            f"| {k} | {v['second']:.0f} | {v['last']:.0f} | {v['growth']:+.1%} |"
            for k, v in result["memory"].items()
            if v
        ),
    ]
