"""Work made of ``vla-rl`` commands, each in a process of its own and kept once finished: benchmarks, critic and policy in turns."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from vla_rl.config import nearest
from vla_rl.errors import UserError

RAW = "normalization_mapping:{ENV:IDENTITY,STATE:MEAN_STD,ACTION:MEAN_STD}"
"""Object positions reach a clone in metres, as LeRobot's own defaults have it: it becomes a poor one."""

SMALL = "dim_model:128,n_heads:4,dim_feedforward:256"
"""Overrides of an ACT that two cores can train in a minute."""

ON_STATE = "train.inputs=[observation.state,observation.environment_state]"
"""Clones that see the simulator's state instead of pictures."""

Command = Callable[[Sequence[str], Path], None]
"""Runs one ``vla-rl`` command with its output in a log file."""


def call(arguments: Sequence[str], log: Path) -> None:
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


def chosen(setting: str, given: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    """Those of ``known`` that a list setting names; None = all.

    Raises:
        UserError: one that is none of them, with the nearest; an empty list.
    """
    names = list(known)
    if given is None:
        return names
    if not len(given):
        raise UserError(f"{setting}=[]: nothing to do; name some of {', '.join(names)}, or null for all")
    for name in given:
        if name not in names:
            raise UserError(f"{setting}={name}: {nearest(name, names)}")
    return list(given)


def workers(count: int | None) -> str:
    """The override of ``env.num_workers``; None = as the environment has it."""
    return "env.num_workers=" + ("null" if count is None else str(count))


def demonstrated(
    folder: Path, env: Sequence[str], *, noise: float, episodes: int, camera: str | None = None
) -> None:
    """The scripted expert's noisy episodes, without pictures or with those of ``camera``, in ``folder/demonstrations``."""
    if not (folder / "demonstrations" / "meta" / "info.json").is_file():
        shown = [f"policy.noise={noise}", f"episodes={episodes}", f"out={folder}/demonstrations"]
        seen = f"env.cameras=[{camera or ''}]"
        call(["record", *env, seen, "policy=expert", *shown], folder / "log.txt")


def cloned(folder: Path, settings: Sequence[str], *, name: str = "base") -> None:
    """A clone on the simulator's state of ``folder/demonstrations``, in ``folder/name``; unfinished ones go on.

    LeRobot's ACT unless ``settings`` say otherwise.
    """
    fixed = ["train.type=act", ON_STATE, "train.lr=0.0005"]
    pretrained(folder / name, [folder / "demonstrations"], [*fixed, *settings], folder / "log.txt")


def pretrained(out: Path, datasets: Sequence[Path], settings: Sequence[str], log: Path) -> None:
    """A policy cloned from ``datasets`` in ``out``, unless it is there already; an unfinished one goes on."""
    if (out / "model.safetensors").is_file() and not (out / "training.safetensors").is_file():
        return
    data = ",".join(map(str, datasets))
    call(["pretrain", f"datasets=[{data}]", f"out={out}", "threads=1", *settings], log)


def fill(
    config: Any,
    prepare: Callable[[Any, str], None],
    train: Callable[[Any, str, str, int], None],
    table: Callable[[Any], None],
) -> None:
    """For each seed, task (``only``) and algorithm of a benchmark: ``prepare`` the task, ``train``, and write the ``table`` after every run.

    With ``seeds=[]`` tasks are prepared and nothing is trained.
    """
    names = chosen("only", config.only, config.tasks)
    algorithms = chosen("algorithms", config.algorithms, config.runs)
    if not config.seeds:
        for name in names:
            prepare(config, name)
    for seed in config.seeds:
        for name in names:
            prepare(config, name)
            for algorithm in algorithms:
                train(config, name, algorithm, int(seed))
                table(config)
    table(config)


def counted(file: Path, env: Sequence[str], policy: Sequence[str], *, episodes: int) -> None:
    """Success of a policy on the episodes that every final evaluation plays, in ``file``."""
    if not file.is_file():
        asked = [f"episodes={episodes}", "seed=200000", f"json={file}"]
        call(["eval", *env, *policy, *asked], file.parent / "log.txt")


def trained(run: Path, arguments: Sequence[str], command: Command = call) -> None:
    """One training run, by ``command``, unless it is there already; one without a report yet is continued."""
    if (run / "report.json").is_file():
        return
    if (run / "config.yaml").is_file():
        arguments = [f"resume={run}"]
    else:
        arguments = [*arguments, f"run.root={run.parent}", f"run.name={run.name}"]
    command(["train", *arguments], run.parent / f"{run.name}.log")


def written(lines: Sequence[str], out: Path) -> str:
    """A page of ``lines``, with what ``out/notes.md`` says of them."""
    notes = out / "notes.md"
    said = ["", notes.read_text().strip()] if notes.is_file() else []
    return "\n".join([*lines, *said]) + "\n"
