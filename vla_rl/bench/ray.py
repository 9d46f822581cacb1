"""``vla-rl bench ray``: what collectors and a learner in processes of their own bring, against one process.

Every side is a ``vla-rl train`` of its own; counted are environment steps per second between two moments at which all of
its collectors played and updates were made, ``launcher.max_due`` being so small that no update is left for later.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vla_rl.bench.sides import keep, line
from vla_rl.config import compose
from vla_rl.errors import UserError
from vla_rl.runtime.run_folder import read_metrics
from vla_rl.runtime.stages import call, chosen
from vla_rl.stats import ratio_row


def run(overrides: list[str]) -> int:
    """Both sides of every row by turns; writes the JSON."""
    config = compose("bench_ray", overrides)
    rows = []
    for name in chosen("only", config.only, config.rows):
        asked = config.rows[name]
        rates: dict[str, list[float]] = {"ours": [], "peer": []}
        for number in range(int(config.rounds)):
            for side in ("ours", "peer"):
                folder = Path(config.work) / f"{name}-{side}-{number}"
                arguments, cores = [*asked.shared, *asked[side]], asked[f"{side}_cores"]
                rate = _beside if asked.get(f"{side}_apart") else _rate
                rates[side].append(rate(config, arguments, folder, cores))
                print(f"{name} {side}: {rates[side][-1]:.1f} steps/s per core", flush=True)
        rows.append(ratio_row(name, asked.unit, rates["ours"], rates["peer"]))
        print(line(rows[-1]), flush=True)
    keep(config, rows)
    return 0


def _beside(config: Any, arguments: Sequence[str], folder: Path, cores: int) -> float:
    """Mean steps per second of ``cores`` trainings at once that know nothing of each other, a core each."""

    def one(core: int) -> float:
        return _rate(config, arguments, folder.with_name(f"{folder.name}-{core}"), 1, core)

    with ThreadPoolExecutor(cores) as pool:
        return sum(pool.map(one, range(cores))) / cores


def _rate(config: Any, arguments: Sequence[str], folder: Path, cores: int | None, first: int = 0) -> float:
    """Steps per second of one training, divided by ``cores`` (None: not kept to any, not divided).

    Args:
        config: ``configs/bench_ray.yaml``.
        arguments: of ``vla-rl train``.
        folder: of the run; what was in it is gone.
        cores: number of cores that it is kept to.
        first: the first of them.

    Raises:
        UserError: it was over before it could be measured.
    """
    shutil.rmtree(folder, ignore_errors=True)
    every = sorted(os.sched_getaffinity(0))  # of this thread, as is what is set
    if cores:
        os.sched_setaffinity(0, every[first : first + cores])
    try:
        settings = [*config.shared, f"run.root={folder.parent}", f"run.name={folder.name}", *arguments]
        call(["train", *settings], folder.parent / f"{folder.name}.log")
    finally:
        os.sched_setaffinity(0, every)
    return steady(read_metrics(folder / "metrics.jsonl"), int(config.skip)) / (cores or 1)


def steady(rows: list[dict[str, Any]], skip: int) -> float:
    """Steps per second from the first row past ``skip`` in which all collectors have played, to the last but one.

    The last row waits for updates that are still owed.

    Raises:
        UserError: fewer than two rows are left.
    """
    played = [
        row
        for row in rows[:-1]
        if row["step"] >= skip and all(v for key, v in row.items() if key.startswith("collected_"))
    ]
    if len(played) < 2:
        raise UserError("the run was over before it could be measured: more run.steps")
    first, last = played[0], played[-1]
    return (last["step"] - first["step"]) / (last["seconds"] - first["seconds"])
