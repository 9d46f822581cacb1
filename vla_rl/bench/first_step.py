"""``vla-rl bench first_step``: seconds from ``vla-rl train`` to the first update, all imports and models included."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from vla_rl.bench.sides import keep
from vla_rl.config import compose
from vla_rl.errors import UserError
from vla_rl.runtime.run_folder import read_metrics


def run(overrides: list[str]) -> int:
    """``rounds`` starts of every experiment; writes the JSON (``ours`` is their mean, ``peer`` what is allowed)."""
    config = compose("bench_first_step", overrides)
    rows = []
    for name, arguments in config.experiments.items():
        seconds = []
        for number in range(int(config.rounds)):
            folder = Path(config.work) / f"{name}-{number}"
            seconds.append(_started([*arguments, *config.shared], folder, float(config.deadline)))
            print(f"{name}: {seconds[-1]:.1f} s", flush=True)
        mean, limit = sum(seconds) / len(seconds), float(config.limit)
        spread = [limit / max(seconds), limit / min(seconds)]
        rows.append(
            {"name": name, "ours": mean, "peer": limit, "unit": "s", "ratio": limit / mean, "ratio95": spread}
        )
    keep(config, rows)
    return 0


def _started(arguments: list[str], folder: Path, deadline: float) -> float:
    """Seconds until a training that is started now has logged a step with its update; it is ended then.

    Raises:
        UserError: it ends before, or takes longer than ``deadline``.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    where = [f"run.root={folder.parent}", f"run.name={folder.name}"]
    log = folder.parent / f"{folder.name}.log"
    begun = time.monotonic()
    with open(log, "w") as handle:
        process = subprocess.Popen(
            [sys.executable, "-m", "vla_rl.cli", "train", *arguments, *where], stdout=handle, stderr=handle
        )
    try:
        while time.monotonic() - begun < deadline:
            metrics = folder / "metrics.jsonl"
            if metrics.is_file() and any("critic_loss" in row for row in read_metrics(metrics)):
                return time.monotonic() - begun
            if process.poll() is not None:
                break
            time.sleep(0.05)
    finally:
        process.terminate()
        process.wait(60)
    raise UserError(f"no update within {deadline:g} s, see {log}")
