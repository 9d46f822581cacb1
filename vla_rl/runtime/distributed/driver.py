"""Training with collectors and a learner on Ray: starts them, replaces those that die, logs, checkpoints.

The checkpoints are the trainer's own, so that a run may go on with or without Ray.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vla_rl.algorithms.elsewhere import learns_from_decisions
from vla_rl.config import CONFIGS
from vla_rl.errors import UserError
from vla_rl.runtime.distributed.actors import (
    NAMESPACE,
    CollectorActor,
    InferenceActor,
    LearnerActor,
    asked,
    connect,
    name_of,
    options_of,
)
from vla_rl.runtime.distributed.batches import BATCHES, LEARNERS, TABLE, check_places
from vla_rl.runtime.distributed.collector import Unreachable
from vla_rl.runtime.distributed.settings import Settings, Slot, learners_of, places_of
from vla_rl.runtime.distributed.told import beside, together
from vla_rl.runtime.seeding import rng_state

log = logging.getLogger("vla_rl.distributed")

START = 300.0
"""Seconds that the learner may take to be there: it reads a checkpoint and journals first."""

GONE = 60.0
"""Seconds that Ray may take to end a learner whose command is gone."""

SHOWING = 5.0
"""Seconds that collectors may take to show their pictures."""

POLL = 0.5
"""Seconds between two looks at the learner."""

DEATHS, WITHIN = 20, 600.0
"""Deaths of one kind within so many seconds after which the run is given up: it is not chance then."""


def check_distributed(config: Any) -> None:
    """Refuse what cannot be, before anything is started.

    Raises:
        UserError: naming the setting.
    """
    collectors, inference = config.get("num_collectors"), config.get("num_inference") or 0
    learners, launcher = config.get("num_learners", 1), config.get("launcher") or {}
    if not collectors or int(collectors) < 1 or int(inference) < 0:
        raise UserError(f"num_collectors={collectors} num_inference={inference}: at least 1, and 0 or more")
    if not learners or not 1 <= int(learners) <= int(collectors):
        raise UserError(
            f"num_learners={learners} num_collectors={collectors}: at least 1 learner, and a collector for each"
        )
    if launcher.get("shard") and int(learners) < 2:
        raise UserError(f"launcher.shard=true: with num_learners={learners} there is nobody to share with")
    threads = launcher.get("threads")
    if threads is not None and int(threads) < 1:
        raise UserError(f"launcher.threads={threads}: at least 1, or null for run.threads")
    used = {
        "run.learner": config.run.get("learner", "inline") != "inline",
        "teleop": (config.get("teleop") or {}).get("_target_"),
        "schedule": (config.get("schedule") or {}).get("stages"),
        "curriculum": (config.get("curriculum") or {}).get("rule"),
    }
    for setting, value in used.items():
        if value:
            wanted = "inline" if setting == "run.learner" else "none"
            raise UserError(f"launcher=ray does not go with {setting}: set it to {wanted}, or launcher=local")


def fingerprint_of(config: Any) -> dict[str, str]:
    """Code and configuration, which learner and collectors have to share."""
    import vla_rl

    code = hashlib.sha256()
    root = Path(vla_rl.__file__).parent
    for path in sorted(root.rglob("*.py")):
        code.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    text = json.dumps(OmegaConf.to_container(config, resolve=True), sort_keys=True, default=str)
    return {
        "version": vla_rl.__version__,
        "code": code.hexdigest()[:12],
        "configuration": hashlib.sha256(text.encode()).hexdigest()[:12],
    }


class Distributed:
    """One run's actors.

    Args:
        trainer: of the run: its folder, its base policy and its progress; see ``begin_from``.

    Raises:
        UserError: Ray is not there, or settings that do not fit together.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.config = trainer, trainer.config
        # A run that was begun without Ray, or before a setting was there, has the defaults.
        defaults = OmegaConf.load(CONFIGS / "launcher" / "ray.yaml")
        self.launcher: Any = OmegaConf.merge(defaults, self.config.launcher)
        launcher = self.launcher
        self.ray, self.started = connect(launcher["address"], launcher["cpus"])
        self.fingerprint = fingerprint_of(self.config)
        self.plain: Any = OmegaConf.to_container(self.config, resolve=True)
        self.folder = os.getcwd()
        self.deaths: dict[str, list[float]] = {"learner": [], "collector": [], "inference": []}
        self.learner = self._learner()
        threads = int(self.config.run.threads or 1)
        remote = self.ray.remote(num_cpus=0, max_restarts=-1, max_concurrency=64)(InferenceActor)
        self.inference = [
            remote.remote(self.plain["policy"], threads, self.folder)
            for _ in range(int(self.config.get("num_inference") or 0))
        ]
        self.collectors: list[Any] = [None] * int(self.config.num_collectors)
        self.running: dict[Any, int] = {}
        """Reference of ``run`` -> index of the collector."""
        for index in range(len(self.collectors)):
            self._collect(index)

    # ---- parts ------------------------------------------------------------------------------------------

    def _learner(self) -> Any:
        config, trainer = self.config, self.trainer
        algorithm = OmegaConf.to_container(config.algorithm, resolve=True)
        settings = Settings(
            algorithm=algorithm,  # type: ignore[arg-type]
            base=trainer.algorithm.policy.base.spec,
            policy=self.plain["policy"] if learns_from_decisions(trainer.algorithm) else None,
            env=trainer.env.env_spec,
            rows=trainer.env.num_envs,
            collectors=places_of(config),
            guests=int(self.launcher["guests"]),
            run=str(trainer.run.path),
            steps=int(config.run.steps),
            fingerprint=self.fingerprint,
            seed=int(config.run.seed),
            threads=int(self.launcher["threads"] or config.run.threads or 1),
            publish=float(self.launcher["publish"]),
            max_due=int(self.launcher["max_due"]),
            learners=learners_of(config),
            gpus=float(self.launcher["gpus"]),
            shard=bool(self.launcher["shard"]),
        )
        options = options_of(settings) | {"max_restarts": -1}
        options |= {"name": name_of(trainer.run.path.name), "namespace": NAMESPACE}
        until = time.monotonic() + GONE
        while True:
            try:
                return self.ray.remote(**options)(LearnerActor).remote(settings, self.folder, self.plain)
            except ValueError as error:
                # The name is taken: perhaps by one whose command has just been killed.
                if time.monotonic() > until:
                    raise UserError(
                        f"run.name={trainer.run.path.name}: a training of that name goes on in this Ray cluster"
                    ) from error
                time.sleep(1.0)

    def _collect(self, index: int) -> None:
        remote = self.ray.remote(num_cpus=0, max_concurrency=2)(CollectorActor)
        actor = remote.remote(self.folder)
        every = int(self.launcher["every"])
        reference = actor.run.remote(index, self.plain, self.learner, self.fingerprint, self.inference, every)
        self.collectors[index] = actor
        self.running[reference] = index

    def ask(self, method: str, *arguments: Any, seconds: float = 60.0) -> Any:
        """What the learner says; one that has died is waited for.

        Raises:
            UserError: it dies again and again, or does not come back.
        """
        until, gone = time.monotonic() + max(START, seconds), False
        while True:
            try:
                return asked(self.ray, getattr(self.learner, method).remote(*arguments), seconds)
            except Unreachable as error:
                if not gone:
                    self._died("learner", str(error))
                gone = True
                if time.monotonic() > until:
                    raise UserError(
                        f"the learner does not come back ({error}): its last checkpoint and all frames since are kept; resume="
                    ) from error
                time.sleep(POLL)

    def _died(self, kind: str, why: str) -> None:
        now = time.monotonic()
        recent = [t for t in self.deaths[kind] if now - t < WITHIN]
        if len(recent) >= DEATHS:
            raise UserError(
                f"a {kind} has been lost {DEATHS} times within {WITHIN:g} s ({why}): see the messages above; out of memory?"
            )
        self.deaths[kind].append(now)
        log.warning("a %s is gone (%s); another takes its place", kind, why)

    def tend(self) -> None:
        """Replace collectors that have died.

        Raises:
            UserError: what one of them refuses to go on with.
        """
        done, _ = self.ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
        for reference in done:
            index = self.running.pop(reference)
            try:
                asked(self.ray, reference)
            except Unreachable as error:
                self._died("collector", str(error))
                self._collect(index)

    def exhibits(self) -> dict[str, Any]:
        """Pictures that collectors have to show; of those that do not answer in time, none."""
        asking = [actor.exhibits.remote() for actor in self.collectors]
        here, _ = self.ray.wait(asking, num_returns=len(asking), timeout=SHOWING)
        sheets = []
        for reference in here:
            with suppress(Exception):  # no picture is worth a run
                sheets.append(asked(self.ray, reference))
        return beside(sheets)

    def close(self) -> None:
        """End all actors, and Ray if it was started here."""
        for actor in [*self.collectors, *self.inference, self.learner]:
            if actor is not None:
                self.ray.kill(actor)
        if self.started:
            self.ray.shutdown()


def begin_from(trainer: Any) -> None:
    """Make the newest checkpoint one that the learner can begin from: with the demonstrations, or as a learner left it.

    A checkpoint of a learner says which of the journalled batches it has; any other knows none of them.

    Raises:
        UserError: an algorithm that learns only where it acts, settings that it does not go with, or another number of collectors than before.
    """
    if not hasattr(trainer.algorithm, "acting_modules"):
        raise UserError(
            f"launcher=ray: {type(trainer.algorithm).__name__} learns only where it acts; set launcher=local"
        )
    if (trainer.config.get("launcher") or {}).get("shard") and not hasattr(trainer.algorithm, "shard"):
        raise UserError(
            f"launcher.shard=true: the networks of {type(trainer.algorithm).__name__} are small, each learner holds all of them; "
            "set launcher.shard=false"
        )
    if learns_from_decisions(trainer.algorithm):
        _check_decisions(trainer)
    newest = trainer.run.latest_checkpoint()
    state = json.loads((newest / "trainer.json").read_text()) if newest else {}
    table = state.get(TABLE)
    config = trainer.config
    places, learners = places_of(config), learners_of(config)
    if table is not None:
        check_places(table, state.get(LEARNERS, 1), places, learners)
        return
    for folder in trainer.run.path.glob(BATCHES + "*"):
        shutil.rmtree(folder, ignore_errors=True)
    # With a table from the first moment: a command that dies before its next checkpoint leaves journals that belong to this one.
    trainer.checkpoint({TABLE: [asdict(Slot()) for _ in range(places)], LEARNERS: learners})


def _check_decisions(trainer: Any) -> None:
    """Refuse what learning from decisions of several processes does not go with.

    Raises:
        UserError: naming the setting.
    """
    name = type(trainer.algorithm).__name__
    if trainer.config.get("num_inference"):
        raise UserError(
            f"num_inference={trainer.config.num_inference}: collectors of {name} run the policy themselves; set num_inference=0"
        )
    if trainer.config.algorithm.get("group"):
        raise UserError(
            f"launcher=ray: algorithm.group={trainer.config.algorithm.group} compares episodes of one process; set "
            "algorithm.group=0, or launcher=local"
        )


def learn_on_ray(trainer: Any) -> None:
    """As ``Trainer.learn``, with ``num_collectors`` collectors; the trainer ends with the newest checkpoint.

    Raises:
        UserError: see ``Distributed``.
    """
    config, run = trainer.config, trainer.config.run
    begin_from(trainer)
    parts = Distributed(trainer)
    progress, minutes = trainer.progress, run.minutes
    try:
        next_log = progress.steps + run.log_every
        next_checkpoint = (progress.steps // run.checkpoint_every + 1) * run.checkpoint_every
        while True:
            status = parts.ask("status", seconds=START)
            _follow(trainer, parts, status)
            if progress.steps >= next_log:
                next_log = progress.steps + run.log_every
                trainer.run.log(progress.steps, **_values(parts, status))
            late = minutes is not None and progress.seconds > 60 * minutes
            if (halt := together(status["told"].values())["halt"]) and not trainer.env.halt:
                print(f"stopped: {halt}", flush=True)
                trainer.env.halt = halt
            late = late or bool(trainer.env.halt)
            if late:
                parts.ask("stop")
            if progress.steps >= next_checkpoint:
                next_checkpoint = (progress.steps // run.checkpoint_every + 1) * run.checkpoint_every
                _checkpoint(trainer, parts)
            parts.tend()
            if not parts.running:
                break
            time.sleep(POLL)
        if not late:
            while parts.ask("settle", 20.0):
                _follow(trainer, parts, parts.ask("status"))
        status = parts.ask("status")
        _follow(trainer, parts, status)
        trainer.run.log(progress.steps, **_values(parts, status))
        newest = _checkpoint(trainer, parts)
    finally:
        parts.close()
    trainer.restore(newest)
    if trainer.env.halt:
        trainer.go_back(newest)
    print(
        f"{config.num_collectors} collectors, {config.get('num_inference') or 0} inference workers; replaced: "
        + ", ".join(f"{len(times)} {kind}" for kind, times in parts.deaths.items())
    )


def _follow(trainer: Any, parts: Distributed, status: dict[str, Any]) -> None:
    progress = trainer.progress
    progress.steps, progress.episodes = status["steps"], status["episodes"]
    progress.seconds, progress.recent = status["seconds"], status["recent"]
    progress.safety_stops = status["safety_stops"]
    trainer.algorithm.updates = status["updates"]
    trainer.metrics = status["metrics"]
    if trainer.on_progress is not None:
        trainer.on_progress(progress, trainer.metrics)


def _values(parts: Distributed, status: dict[str, Any]) -> dict[str, Any]:
    values = {"seconds": status["seconds"], "episodes": status["episodes"], "due": status["due"]}
    if status["recent"]:
        values["success"] = sum(status["recent"]) / len(status["recent"])
    values |= {f"collected_{i}": steps for i, steps in status["collected"].items()}
    values |= {f"lost_{kind}": len(times) for kind, times in parts.deaths.items()}
    if status["safety_stops"]:
        values["safety_stops"] = status["safety_stops"]
    return values | status["metrics"] | together(status["told"].values())["metrics"]


def _checkpoint(trainer: Any, parts: Distributed) -> Path:
    """The learner's state and the counts that go with it, in one rename."""
    believed = together(parts.ask("status")["told"].values())["trusted"]

    def write(path: Path, trusted: str | None) -> None:
        said = parts.ask("save", str((path / "algorithm").resolve()), seconds=START)
        trainer.progress.steps = said["steps"]
        for name, value in said["tally"].items():
            setattr(trainer.progress, name, value)
        state = {
            "progress": trainer.progress.__dict__,
            "episodes_started": said["tally"]["episodes"],
            "rng": rng_state(),
            TABLE: said[TABLE],
            LEARNERS: learners_of(trainer.config),
            "trusted": trusted,
        }
        (path / "trainer.json").write_text(json.dumps(state))

    saved = trainer.store(write, believed)
    trainer.run.exhibit(parts.exhibits())
    return saved
