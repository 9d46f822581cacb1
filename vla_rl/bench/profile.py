"""``vla-rl bench profile``: flame graphs of trainings that run, and the share of each part.

py-spy looks at the process from outside, so nothing is slower than without it. A part is told by the functions on the
stack; the first that fits counts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from vla_rl.bench.sides import environment
from vla_rl.config import compose
from vla_rl.errors import UserError
from vla_rl.runtime.metrics import read_metrics, write_json, write_text
from vla_rl.runtime.stages import chosen

PARTS = {
    "pictures": ("VlaVectorEnv.look", ".look (sim/", "_seen (vla_rl/rollout"),
    "simulator": ("VlaVectorEnv.step_wait", "VlaVectorEnv.step_async", "_reset (vla_rl/rollout"),
    "policy": ("OpenLoop.act", "Residual.act"),
    "updates": ("make_updates", "Trainer._update"),
    "collector": ("Collector.step", "rollout/collector.py"),
}
"""Part -> what a frame of its stacks contains; in the order in which they are asked."""

WAIT = 900.0
"""Seconds that a training may take to get to ``step``."""


def run(overrides: list[str]) -> int:
    """Profile every run; write the pictures, the shares and the page."""
    config = compose("bench_profile", overrides)
    work, out = Path(config.work), Path(config.out)
    shutil.rmtree(work, ignore_errors=True)
    profiler = environment("profiler", [config.profiler], work).parent / "py-spy"
    shares: dict[str, dict[str, float]] = {}
    for name in chosen("only", config.only, config.runs):
        words = [*config.shared, *config.runs[name], f"run.root={work}", f"run.name={name}"]
        shares[name] = profiled(profiler, words, work / name, out / f"{name}.svg", config)
        print(name, ", ".join(f"{part} {share:.0%}" for part, share in shares[name].items()), flush=True)
    write_json(out / "results.json", shares)
    write_text(out / "README.md", page(shares))
    return 0


def profiled(profiler: Path, words: list[str], run: Path, picture: Path, config: Any) -> dict[str, float]:
    """Train until ``config.step``, sample twice (a picture, then the stacks themselves), end it; the share of each part.

    Raises:
        UserError: it ended by itself, or py-spy may not look.
    """
    run.parent.mkdir(parents=True, exist_ok=True)
    picture.parent.mkdir(parents=True, exist_ok=True)
    log, stacks = run.parent / f"{run.name}.log", run.parent / f"{run.name}.stacks"
    with open(log, "w") as handle:
        command = [sys.executable, "-m", "vla_rl.cli", "train", *words]
        training = subprocess.Popen(
            command, stdout=handle, stderr=handle, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    try:
        until = time.monotonic() + WAIT
        while not any(row["step"] >= config.step for row in read_metrics(run / "metrics.jsonl")):
            if training.poll() is not None or time.monotonic() > until:
                raise UserError(f"the training {run.name} did not get to step {config.step}, see {log}")
            time.sleep(1.0)
        for kind, file in (("flamegraph", picture), ("raw", stacks)):
            asked = ["-d", str(config.seconds), "-r", str(config.rate), "-f", kind, "-o", str(file)]
            done = subprocess.run(
                [str(profiler), "record", *asked, "-p", str(training.pid)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode or not file.is_file():
                last = (done.stderr or done.stdout).strip().splitlines()[-1:]
                raise UserError(f"py-spy cannot look at the training: {' '.join(last)}")
    finally:
        training.kill()
        training.wait()
    # Its title is the command, with the profiler's place on this machine.
    write_text(picture, picture.read_text().replace(str(profiler), profiler.name))
    return shares_of(stacks.read_text().splitlines())


def shares_of(lines: list[str]) -> dict[str, float]:
    """The share of each part of ``PARTS`` in the main thread's samples.

    Args:
        lines: py-spy's raw format: frames joined by semicolons, a space, how often.
    """
    found: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        if "Trainer.learn" not in stack:
            continue
        frames = stack.split(";")
        part = next(
            (
                part
                for part, marks in PARTS.items()
                if any(mark in frame for mark in marks for frame in frames)
            ),
            "rest",
        )
        found[part] += int(count)
    total = max(1, sum(found.values()))
    return {part: found[part] / total for part in (*PARTS, "rest")}


def page(shares: dict[str, dict[str, float]]) -> str:
    """The shares as a table, beside the pictures."""
    lines = [
        "# Where the time goes",
        "",
        "`vla-rl bench profile`: stacks sampled by py-spy in the running training (`assets/dit-nano` on `env=table`, pictures, eight "
        "environments in one process, one thread). Each name is a flame graph.",
        "",
        "| training | " + " | ".join((*PARTS, "rest")) + " |",
        "|---|" + "---|" * (len(PARTS) + 1),
    ]
    for name, found in shares.items():
        lines.append(
            f"| [{name}]({name}.svg) | " + " | ".join(f"{100 * s:.0f} %" for s in found.values()) + " |"
        )
    lines += [
        "",
        "What was done about it, and what that brought: [docs/benchmarks.md](../../../docs/benchmarks.md).",
    ]
    return "\n".join([*lines, ""])
