"""The part of the fault campaign that trains: learner and trainer are killed while the arm is under way."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from real.bench.stage import STARTING, Stage
from vla_rl.config import ROOT
from vla_rl.errors import UserError
from vla_rl.runtime.run_folder import RunFolder
from vla_rl.runtime.stages import SMALL, call, cloned

FAULTS = ("kill_learner", "kill_training")

ARGUMENTS = [
    *(
        "env=robot",
        "env.cameras=[]",
        "env.stop_patience=0",
        "policy=lerobot",
        "policy.horizon=8",
        "algorithm=residual_td3",
    ),
    *("algorithm.warmup_steps=200", "algorithm.critic_updates=100", "algorithm.utd=0.5"),
    *("run.learner=process", "run.base_episodes=0", "run.final_episodes=0", "run.checkpoint_every=400"),
]
"""Of ``vla-rl train``; real time, so that there is little of it."""


def base_policy(work: Path) -> Path:
    """A clone of four demonstrations in the arm's lockstep twin: it need not be good to be disturbed."""
    shown = work / "demonstrations"
    if not shown.is_dir():
        env = ["env=sim_arm", "env.num_workers=0", "env.num_envs=4", "env.cameras=[]"]
        call(["record", *env, "policy=expert", "episodes=4", f"out={shown}"], work / "base.log")
    cloned(work, ["train.steps=100", "train.overrides={" + SMALL + "}"])
    return work / "base"


class Training:
    """A residual run on the stage's arm, killed in parts or whole, and what it kept in the end.

    Args:
        stage: arm, safety node and witness run; no session does.
        robot: contract's name.
        folder: the run's, new.
    """

    def __init__(self, stage: Stage, robot: str, folder: Path) -> None:
        self.stage, self.folder = stage, folder
        self.began = self._witnessed()
        self.new = [*ARGUMENTS, f"env.robot={robot}", f"run.root={folder.parent}", f"run.name={folder.name}"]
        self.new += ["run.steps=1000000", f"policy.path={base_policy(stage.work)}"]
        self.killed = self.starts = 0
        self.start()

    def _witnessed(self) -> int:
        path = self.stage.work / "steps.f64"
        return len(np.fromfile(path)) // 3 if path.exists() else 0

    def _command(self, *more: str) -> list[str]:
        known = (self.folder / "config.yaml").is_file()
        arguments = [f"resume={self.folder}"] if known else self.new
        return [sys.executable, "-m", "vla_rl.cli", "train", *arguments, *more]

    @property
    def log(self) -> Path:
        """Output of the newest start."""
        return self.stage.work / f"training-{self.starts:03d}.log"

    def start(self) -> None:
        """Begin or go on; returns when the arm is under way."""
        self.starts += 1
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        with open(self.log, "wb") as log:
            process = subprocess.Popen(self._command(), stdout=log, stderr=log, cwd=ROOT, env=env)
        self.stage.session = self.process = process
        if not self.stage.playing(STARTING):
            raise UserError(f"training does not begin: {self.log.read_text(errors='replace')[-300:]}")

    def learner(self) -> psutil.Process | None:
        """The learner's process now."""
        children = psutil.Process(self.process.pid).children()
        mine = [c for c in children if any("spawn_main" in word for word in c.cmdline())]
        return mine[0] if mine else None

    def kill_learner(self, patience: float) -> str:
        """SIGKILL to the learner; the arm goes on, and so does learning."""
        old = self.learner()
        if old is None:
            raise UserError("there is no learner to kill")
        old.kill()
        if not self.stage.playing(patience):
            raise UserError(
                f"the arm stopped with its learner: {self.log.read_text(errors='replace')[-300:]}"
            )
        until = time.monotonic() + patience
        while time.monotonic() < until:
            new = self.learner()
            if new is not None and new.pid != old.pid:
                return "went on by itself"
            time.sleep(0.1)
        raise UserError("no new learner was started")

    def kill_training(self, patience: float) -> str:
        """SIGKILL to the process that acts (its learner ends by itself); the same command goes on."""
        self.process.kill()
        self.process.wait()
        self.killed += 1
        self.start()
        return "went on with the same command"

    def lost(self) -> dict[str, Any]:
        """End it; steps that the witness saw finished and the last checkpoint does not have."""
        self.process.kill()
        self.process.wait()
        self.killed += 1
        time.sleep(1.5)  # the witness writes once a second
        seen = self._witnessed() - self.began
        with open(self.stage.work / "training-last.log", "wb") as log:
            # Nothing more is played: what the journal holds goes into a checkpoint.
            subprocess.run(self._command("run.steps=1"), stdout=log, stderr=log, cwd=ROOT, check=False)
        newest = RunFolder.latest_in(self.folder)
        kept = json.loads((newest / "algorithm/algorithm.json").read_text())["steps"] if newest else 0
        # The step under way when it was killed was not finished.
        return {"seen": seen, "kept": kept, "lost": max(0, seen - kept - self.killed)}


def disturb(
    stage: Stage, robot: str, counts: dict[str, int], rng: random.Random, patience: float
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Inject them in random order; returns what each came to, and the steps seen, kept and lost."""
    order = [name for name, count in counts.items() for _ in range(count)]
    rng.shuffle(order)
    if not order:
        return [], {"seen": 0, "kept": 0, "lost": 0}
    training = Training(stage, robot, stage.work / "training")
    results = []
    for number, name in enumerate(order, 1):
        time.sleep(rng.uniform(4, 10))  # a new learner takes seconds until it learns
        began = time.monotonic()
        try:
            how = getattr(training, name)(patience)
        except UserError as error:
            words = stage.words_of(training.log)
            clear = training.process.poll() is not None and words.startswith("vla-rl:")
            how = f"stopped ({words}), went on with the same command" if clear else f"unrecovered: {error}"
            how = how.replace(f"{stage.work}/", "")
            training.process.kill()
            training.process.wait()
            training.start()
        results.append({"fault": name, "how": how, "seconds": time.monotonic() - began})
        print(f"training {number}/{len(order)} {name}: {how}", flush=True)
    return results, training.lost()
