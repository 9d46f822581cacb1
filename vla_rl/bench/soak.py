"""``vla-rl bench soak``: training on Ray for hours while one of its processes is killed every minute.

What is looked for: a run that stands still, a batch of transitions that counts twice or is missing, memory that grows.
Nothing is taken from the learner's own counts: its journals are read from outside before it deletes them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from vla_rl.bench.soak_report import Audit, write_report
from vla_rl.config import compose
from vla_rl.errors import UserError
from vla_rl.runtime.metrics import read_metrics
from vla_rl.runtime.run_folder import RunFolder

KINDS = {
    "learner": "ray::LearnerActor",
    "collector": "ray::CollectorActor",
    "inference": "ray::InferenceActor",
}
"""What Ray calls their processes."""

STILL = 600.0
"""Seconds without a new step after which the run counts as stuck."""

MERCY = 120.0
"""Seconds that Ray's processes may take to end after the command that started them was killed."""


@dataclass
class Soak:
    """What has happened so far.

    Attributes:
        killed: how many of each kind.
        memory: (seconds since the start, kind, MiB of its own) of every process at every look.
        disk: (seconds since the start, MiB) of the run's folder.
        seconds: of the clock, until its end.
        pauses: seconds that each kill cost until the next new step.
        problems: what must not happen.
    """

    killed: dict[str, int] = field(default_factory=dict)
    memory: list[tuple[float, str, float]] = field(default_factory=list)
    disk: list[tuple[float, float]] = field(default_factory=list)
    seconds: float = 0.0
    pauses: list[tuple[str, float]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def run(overrides: list[str]) -> int:
    """Train, kill, look, and write the report; 1 when something was found.

    Raises:
        UserError: an unknown kind.
    """
    config = compose("bench_soak", overrides)
    for kind in config.kinds:
        if kind not in (*KINDS, "driver"):
            raise UserError(f"kinds={kind}: choose from {', '.join((*KINDS, 'driver'))}")
    work = Path(config.work)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    soak, audit = Soak(), Audit(work / "run", work / "journals")
    driver = _Driver(config, work)
    began = time.monotonic()
    try:
        _watch(config, soak, audit, driver)
    finally:
        soak.seconds = time.monotonic() - began
        driver.kill()
    audit.look(final=True)
    return write_report(config, soak, audit, _counted(work / "run"))


class _Driver:
    """The ``vla-rl train`` of the moment, and all processes that it has started."""

    def __init__(self, config: Any, work: Path) -> None:
        self.work, self.log = work, work / "log.txt"
        self.process = self._start([*config.train, f"run.root={work}", "run.name=run"])
        self.family: dict[int, psutil.Process] = {}

    def _start(self, words: list[str]) -> subprocess.Popen:
        print("vla-rl train", *words, flush=True)
        with open(self.log, "a") as handle:
            command = [sys.executable, "-m", "vla_rl.cli", "train", *words]
            return subprocess.Popen(command, stdout=handle, stderr=handle)

    def members(self) -> dict[str, list[psutil.Process]]:
        """Living processes by kind; ``driver`` is the command itself, ``ray`` what Ray itself runs."""
        found: dict[str, list[psutil.Process]] = {kind: [] for kind in (*KINDS, "driver", "ray")}
        try:
            here = psutil.Process(self.process.pid)
            found["driver"].append(here)
            for child in here.children(recursive=True):
                self.family[child.pid] = child
                found[_kind(child)].append(child)
        except psutil.NoSuchProcess:
            pass
        return found

    def kill(self) -> int:
        """End the command by SIGKILL; how many of its processes outlived it and had to be ended too."""
        self.members()
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(list(self.family.values()), timeout=MERCY)
        self.family.clear()
        for process in alive:
            process.kill()
        return len(alive)

    def resume(self, *more: str) -> None:
        """Go on with the run."""
        self.process = self._start([f"resume={self.work / 'run'}", *more])


def _kind(process: psutil.Process) -> str:
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        return "ray"
    return next((kind for kind, names in KINDS.items() if words.startswith(names)), "ray")


def _watch(config: Any, soak: Soak, audit: Audit, driver: _Driver) -> None:
    """Until the command has ended by itself."""
    chance, began = random.Random(int(config.seed)), time.monotonic()
    next_kill, waiting, steps, moved, last = began + 2 * float(config.every), None, 0, began, False
    while True:
        code = driver.process.poll()
        if code is not None:
            if code or not last:
                soak.problems.append(f"vla-rl train ended by itself with {code}: {_last_line(driver.log)}")
            return
        time.sleep(float(config.poll))
        now, members = time.monotonic(), driver.members()
        _measure(soak, now - began, members, driver.work / "run")
        audit.look()
        if (seen := _steps(driver.work / "run")) != steps:  # fewer after a resume
            steps, moved = seen, now
            if waiting is not None:
                soak.pauses.append((waiting[0], now - waiting[1]))
                waiting = None
        if now - moved > STILL:
            soak.problems.append(f"no new step for {STILL:g} s after {now - began:.0f} s: stuck")
            return
        if last or now < next_kill or not steps:
            continue
        last = now - began > 60 * config.minutes
        # A command that has not come back yet has nothing new to lose.
        able = [k for k in config.kinds if members[k] and not (k == "driver" and waiting)]
        if not able and not last:
            continue
        kind = "driver" if last else chance.choice(able)
        next_kill = now + float(config.every)
        waiting = waiting or (kind, now)
        if kind == "driver":
            if left := driver.kill():
                soak.problems.append(f"{left} processes outlived their driver by {MERCY:g} s")
            # The last one has nothing to do but to take up what there is, and to end with a checkpoint of it.
            driver.resume(*(["run.minutes=0.01"] if last else []))
        else:
            try:
                os.kill(chance.choice(members[kind]).pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        soak.killed[kind] = soak.killed.get(kind, 0) + 1
        print(f"{(now - began) / 60:.1f} min, {steps} steps: killed {kind} {soak.killed[kind]}", flush=True)


def _measure(soak: Soak, at: float, members: dict[str, list[psutil.Process]], run: Path) -> None:
    for kind, processes in members.items():
        for process in processes:
            try:
                soak.memory.append((at, kind, process.memory_full_info().uss / 2**20))
            except psutil.Error:  # gone since
                continue
    size = 0
    for path in run.rglob("*"):
        try:
            size += path.stat().st_size
        except OSError:  # deleted since
            continue
    soak.disk.append((at, size / 2**20))


def _steps(run: Path) -> int:
    rows = read_metrics(run / "metrics.jsonl")
    return int(rows[-1]["step"]) if rows else 0


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _counted(run: Path) -> dict[str, Any]:
    """The newest checkpoint's own account (``trainer.json``)."""
    newest = RunFolder.latest_in(run)
    return json.loads((newest / "trainer.json").read_text()) if newest else {}
