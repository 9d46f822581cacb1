"""Benchmarks that are made of ``vla-rl`` commands, each in a process of its own and kept once finished."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from vla_rl.errors import UserError


def call(arguments: list[str], log: Path) -> None:
    """One ``vla-rl`` command (its memory and its threads end with it).

    Raises:
        UserError: it failed, with its last line.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    print("vla-rl", *arguments, flush=True)
    with open(log, "a") as handle:
        code = subprocess.run(
            [sys.executable, "-m", "vla_rl.cli", *arguments], stdout=handle, stderr=handle, check=False
        ).returncode
    if code:
        lines = log.read_text().strip().splitlines()
        raise UserError(f"vla-rl {arguments[0]} ended with {code}, see {log}: {lines[-1] if lines else ''}")


def cloned(folder: Path, settings: list[str]) -> None:
    """LeRobot's ACT, small, on the simulator's state, from ``folder/demonstrations`` into ``folder/base``.

    Unfinished ones are continued.
    """
    base = folder / "base"
    if (base / "model.safetensors").is_file() and not (base / "training.safetensors").is_file():
        return
    fixed = [
        "train.type=act",
        "train.inputs=[observation.state,observation.environment_state]",
        "train.lr=0.0005",
        "threads=1",
    ]
    call(
        ["pretrain", f"datasets=[{folder}/demonstrations]", f"out={base}", *fixed, *settings],
        folder / "log.txt",
    )


SMALL = "dim_model:128,n_heads:4,dim_feedforward:256"
"""Overrides of an ACT that two cores can train in a minute."""
