"""The learner that several collectors feed: every frame once, journalled before it counts, updates beside taking.

No Ray here: ``vla_rl.runtime.distributed.actors`` puts it into a process of its own, and a new one into its place when that dies.
It begins from the run's newest checkpoint and the journal after it, and knows from both which batches it has had.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_rl.algorithms.base import make_updates
from vla_rl.data.journal import Journal, recover
from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.learner.messages import unflatten, unpack
from vla_rl.learner.process import Absent, weights
from vla_rl.policies.base import PolicySpec
from vla_rl.runtime.distributed.history import Published
from vla_rl.runtime.run_folder import RunFolder
from vla_rl.train import WINDOW

BURST = 8
"""Updates between two looks at who else wants the learner."""

JOURNALS = 3
"""Kept: of the newest checkpoint and of those that a broken one falls back on."""

BATCHES = "batches"
"""Folder of the journals in a run's folder."""

TABLE = "distributed"
"""Key of ``trainer.json`` under which a checkpoint keeps who has sent what."""


@dataclass
class Settings:
    """What a learner is made of; plain enough to travel.

    Attributes:
        algorithm: its configuration (plain containers with ``_target_``).
        base: spec of the frozen base, which acts elsewhere.
        env: spec of the environment.
        rows: of each collector.
        collectors: how many at most.
        run: folder of the run.
        steps: environment steps at which all stop.
        fingerprint: of code and configuration; collectors of another one are refused.
        seed: of everything random here.
        threads: torch threads.
        publish: seconds between two versions of the weights.
        max_due: updates owed from which collectors wait.
    """

    algorithm: dict[str, Any]
    base: PolicySpec
    env: EnvSpec
    rows: int
    collectors: int
    run: str
    steps: int
    fingerprint: dict[str, str]
    seed: int = 0
    threads: int = 1
    publish: float = 1.0
    max_due: int = 2000


@dataclass
class Slot:
    """One collector's place: ``rows`` rows of the replay.

    Attributes:
        generation: how many have had it; only the newest one's batches count.
        received: number of its newest batch; -1 = none.
        steps: environment steps from here, of all generations.
    """

    generation: int = 0
    received: int = -1
    steps: int = 0


@dataclass
class Tally:
    """What all collectors have done; saved with every checkpoint."""

    episodes: int = 0
    recent: list[bool] = field(default_factory=list)
    seconds: float = 0.0


class DistributedLearner:
    """See the module's docstring; all methods may be called from any thread.

    Args:
        settings: see there.

    Raises:
        UserError: an algorithm that learns only where it acts, or a checkpoint of another configuration.
    """

    def __init__(self, settings: Settings) -> None:
        from omegaconf import OmegaConf

        from vla_rl.config import build
        from vla_rl.runtime.seeding import seed_everything
        from vla_rl.runtime.threads import set_threads

        set_threads(settings.threads)
        seed_everything(settings.seed)
        self.settings = settings
        total = settings.rows * settings.collectors
        self.learner: Any = build(
            OmegaConf.create(settings.algorithm),
            base=Absent(settings.base),
            env_spec=settings.env,
            num_envs=total,
        )
        if not hasattr(self.learner, "acting_modules"):
            raise UserError(
                f"launcher=ray: {type(self.learner).__name__} learns only where it acts; set launcher=local"
            )
        self.slots = [Slot() for _ in range(settings.collectors)]
        self.tally = Tally()
        self.recent: deque[bool] = deque(maxlen=WINDOW)
        self.lag: deque[int] = deque(maxlen=200)
        """Updates done between the weights that a batch was played with and its arrival."""
        self.metrics: dict[str, float] = {}
        self.repeated = self.recovered = 0
        """Batches that came a second time; batches that a journal gave back."""
        self.stopping = False
        self.failure: Exception | None = None
        self.journal: Journal | None = None
        self.folder = Path(settings.run) / BATCHES
        self._updates_of: dict[int, int] = {}
        self._restore()
        # A learner that was started again must not reuse the numbers of the one before it.
        self.published = Published(first=time.time_ns() // 1_000_000)
        self.published.publish(weights(self.learner))
        self._updates_of[self.published.version] = self.learner.updates
        self._published_at = time.monotonic()
        self._began = time.monotonic() - self.tally.seconds
        self._lock = threading.RLock()
        self._wanted = threading.Condition(self._lock)
        threading.Thread(target=self._work, daemon=True).start()

    # ---- collectors -------------------------------------------------------------------------------------

    def join(self, collector: int, fingerprint: dict[str, str]) -> dict[str, int]:
        """A collector's place, from now on the caller's alone: ``generation`` and ``steps`` so far.

        The episodes that an earlier holder had in flight are closed.

        Raises:
            UserError: other code or another configuration; no such place.
        """
        mine = self.settings.fingerprint
        for name in mine:
            if mine[name] != fingerprint.get(name):
                raise UserError(
                    f"a collector with {name} {fingerprint.get(name)} wants to join a learner with {name} {mine[name]}: "
                    "run the same on both"
                )
        if not 0 <= collector < len(self.slots):
            raise UserError(f"there is no place {collector}: num_collectors={len(self.slots)}")
        with self._lock:
            slot = self.slots[collector]
            if slot.received >= 0:
                self.learner.interrupt(self._rows(collector))
            slot.generation, slot.received = slot.generation + 1, -1
            self._write(np.zeros(0, np.uint8), collector, {"generation": slot.generation, "number": -1})
            return {"generation": slot.generation, "steps": self.learner.steps}

    def push(self, collector: int, generation: int, number: int, message: bytes) -> dict[str, Any]:
        """Take a batch of frames, unless it has been had; it is on disk before this returns.

        Args:
            collector: whose.
            generation: from ``join``.
            number: of the batch, 0, 1, ... in this generation.
            message: ``vla_rl.learner.messages``: frames, with fields ``size``, ``rows`` (of the collector's own), ``episodes`` (successes
                of those that ended) and ``version`` (of the weights it was played with).

        Returns:
            ``steps`` of all, ``version`` of the newest weights, ``wait`` whether to hold on, ``stop`` whether all is done.

        Raises:
            UserError: somebody else has the place by now, or batches are missing.
        """
        with self._lock:
            self._check()
            slot = self.slots[collector]
            if generation != slot.generation:
                raise UserError(f"place {collector} has been given to another collector")
            if number > slot.received + 1:
                raise UserError(f"collector {collector} sends batch {number} after {slot.received}")
            if number <= slot.received:
                self.repeated += 1
            else:
                at = {"generation": generation, "number": number}
                self._write(np.frombuffer(message, np.uint8), collector, at)
                self._take(collector, number, message)
            self._wanted.notify()
            return self.hail()

    def hail(self) -> dict[str, Any]:
        """What ``push`` returns, of now."""
        with self._lock:
            self._check()
            return {
                "steps": self.learner.steps,
                "version": self.published.version,
                "wait": self.learner.updates_due() > self.settings.max_due,
                "stop": self.stopping or self.learner.steps >= self.settings.steps,
            }

    def weights_since(self, version: int) -> list[bytes]:
        """Packed deltas that bring ``version`` up to date (``Published.since``)."""
        with self._lock:
            return [delta.pack() for delta in self.published.since(version)]

    # ---- the driver -------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Counts and metrics of now.

        Raises:
            Exception: why learning has stopped, if it has.
        """
        with self._lock:
            self._check()
            lag = float(np.mean(self.lag)) if self.lag else 0.0
            return {
                "steps": self.learner.steps,
                "updates": self.learner.updates,
                "due": self.learner.updates_due(),
                "episodes": self.tally.episodes,
                "recent": list(self.recent),
                "seconds": self._seconds(),
                "collected": [slot.steps for slot in self.slots],
                "metrics": self.metrics
                | {"staleness": lag, "repeated": self.repeated, "recovered": self.recovered},
            }

    def save(self, folder: str) -> dict[str, Any]:
        """Write the algorithm's part of a checkpoint; returns what the trainer's part has to say (``trainer.json``)."""
        with self._lock:
            self._check()
            self.learner.save(Path(folder))
            self._rotate()
            self.tally.seconds, self.tally.recent = self._seconds(), list(self.recent)
            return {
                "steps": self.learner.steps,
                "tally": dict(self.tally.__dict__),
                TABLE: [dict(slot.__dict__) for slot in self.slots],
            }

    def stop(self) -> None:
        """Tell collectors to end with their next batch."""
        with self._lock:
            self.stopping = True

    def settle(self, seconds: float) -> int:
        """Wait for updates that are owed, for so long at most; returns how many are left."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with self._lock:
                self._check()
                due = self.learner.updates_due()
            if not due:
                return 0
            time.sleep(0.05)
        return due

    # ---- inside -----------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _rows(self, collector: int) -> Tensor:
        return torch.arange(self.settings.rows) + collector * self.settings.rows

    def _take(self, collector: int, number: int, message: bytes) -> None:
        _, tensors, fields = unpack(message)
        frames = unflatten(tensors, fields["size"])
        before = self.learner.steps
        self.learner.observe(frames, torch.tensor(fields["rows"]) + collector * self.settings.rows)
        slot = self.slots[collector]
        slot.received = number
        slot.steps += self.learner.steps - before
        self.tally.episodes += len(fields["episodes"])
        self.recent.extend(bool(success) for success in fields["episodes"])
        if (then := self._updates_of.get(fields["version"])) is not None:
            self.lag.append(self.learner.updates - then)

    def _work(self) -> None:
        """Updates, for as long as any are due."""
        try:
            while True:
                with self._wanted:
                    if not self.learner.updates_due():
                        self._publish()
                        self._wanted.wait(0.2)
                        continue
                    self.metrics |= make_updates(self.learner, min(self.learner.updates_due(), BURST))
                    if time.monotonic() - self._published_at > self.settings.publish:
                        self._publish()
                time.sleep(2e-4)  # long enough for whoever waits for the lock to have it
        except Exception as error:  # told to whoever asks next
            self.failure = error

    def _publish(self) -> None:
        if self._updates_of[self.published.version] == self.learner.updates:
            return
        self._published_at = time.monotonic()
        version = self.published.publish(weights(self.learner))
        self._updates_of[version] = self.learner.updates
        for old in list(self._updates_of)[:-1000]:
            del self._updates_of[old]

    # ---- on disk ----------------------------------------------------------------------------------------

    def _write(self, message: np.ndarray, collector: int, at: dict[str, int]) -> None:
        if self.journal is None:
            path = self.folder / f"{self.learner.steps:09d}-{time.time_ns()}.journal"
            self.journal = Journal(path)
        table = np.array([collector, at["generation"], at["number"]], np.int64)
        self.journal.append({"message": message, "at": table})

    def _rotate(self) -> None:
        if self.journal is not None:
            self.journal.close()
            self.journal = None
        first = {path.name.split("-")[0] for path in self.folder.glob("*.journal")}
        kept = sorted(first)[-JOURNALS:]
        for path in self.folder.glob("*.journal"):
            if path.name.split("-")[0] not in kept:
                path.unlink()

    def _restore(self) -> None:
        """The newest checkpoint, and the batches that were journalled after it."""
        checkpoint = RunFolder.latest_in(Path(self.settings.run))
        if checkpoint is not None:
            self.learner.load(checkpoint / "algorithm")
            state = json.loads((checkpoint / "trainer.json").read_text())
            if TABLE in state:
                if len(state[TABLE]) != len(self.slots):
                    raise UserError(
                        f"the run was begun with num_collectors={len(state[TABLE])}, whose rows its replay has: continue with as many"
                    )
                self.slots = [Slot(**slot) for slot in state[TABLE]]
            self.tally = Tally(
                state["progress"]["episodes"], state["progress"]["recent"], state["progress"]["seconds"]
            )
            self.recent.extend(self.tally.recent)
        for path in sorted(self.folder.glob("*.journal")):
            for record in recover(path):
                self._replay(record)

    def _replay(self, record: dict[str, np.ndarray]) -> None:
        """Take a journalled batch that the checkpoint does not have."""
        collector, generation, number = (int(v) for v in record["at"])
        slot = self.slots[collector]
        if (generation, number) <= (slot.generation, slot.received):
            return
        if generation > slot.generation:
            if slot.received >= 0:
                self.learner.interrupt(self._rows(collector))
            slot.generation, slot.received = generation, -1
        if number >= 0:
            self._take(collector, number, record["message"].tobytes())
            self.recovered += 1
