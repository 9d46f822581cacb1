"""The learner that several collectors feed: every frame once, journalled before it counts, updates beside taking.

No Ray here: ``vla_rl.runtime.distributed.actors`` puts it into a process of its own, and a new one into its place when that dies.
It begins from the run's newest checkpoint and the journal after it, and knows from both which batches it has had.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_rl.algorithms.base import make_updates
from vla_rl.algorithms.elsewhere import learns_from_decisions
from vla_rl.errors import NonFiniteError, UserError
from vla_rl.learner.messages import unflatten, unpack
from vla_rl.learner.process import Absent, weights
from vla_rl.runtime.distributed.batches import LEARNERS, TABLE, Batches, check_places, part_of
from vla_rl.runtime.distributed.history import Published
from vla_rl.runtime.distributed.ranks import Ranks
from vla_rl.runtime.distributed.settings import Settings, Slot, Tally
from vla_rl.runtime.distributed.told import Told
from vla_rl.runtime.run_folder import RunFolder
from vla_rl.train import WINDOW

BURST = 8
"""Updates between two looks at who else wants the learner."""


def _base(settings: Settings) -> Any:
    if settings.policy is None:
        return Absent(settings.base)
    from omegaconf import OmegaConf

    from vla_rl.policies.load import load_base

    return load_base(OmegaConf.create(settings.policy))


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
        total = settings.rows * settings.places
        self.learner: Any = build(
            OmegaConf.create(settings.mine()),
            base=_base(settings),
            env_spec=settings.env,
            num_envs=total,
        )
        if not hasattr(self.learner, "acting_modules"):
            raise UserError(
                f"launcher=ray: {type(self.learner).__name__} learns only where it acts; set launcher=local"
            )
        self.decides = learns_from_decisions(self.learner)
        places = range(settings.rank, settings.collectors, settings.learners)
        self.slots = {place: Slot() for place in places}
        self.tally = Tally()
        self.told: dict[int, Told] = {}
        """Place -> what its environment said last."""
        self.recent: deque[bool] = deque(maxlen=WINDOW)
        self.lag: deque[int] = deque(maxlen=200)
        """Updates done between the weights that a batch was played with and its arrival."""
        self.metrics: dict[str, float] = {}
        self.repeated = self.recovered = 0
        """Batches that came a second time; batches that a journal gave back."""
        self.stopping = False
        self.failure: Exception | None = None
        self.batches = Batches(Path(settings.run), settings.rank)
        self._updates_of: dict[int, int] = {}
        self.ranks = Ranks(settings.rank, settings.learners, settings.meeting)
        if settings.shard:
            self.learner.shard()
        self._save_to: Path | None = None
        self._restore()
        self.ranks.share(self.learner)
        # A learner that was started again must not reuse the numbers of the one before it.
        self.published = Published(first=time.time_ns() // 1_000_000)
        self._publishing = threading.Lock()
        self.published.publish(weights(self.learner))
        self._updates_of[self.published.version] = self.learner.updates
        self._published_at = time.monotonic()
        self._began = time.monotonic() - self.tally.seconds
        self._lock = threading.RLock()
        self._wanted = threading.Condition(self._lock)
        threading.Thread(target=self._work, daemon=True).start()

    # ---- collectors -------------------------------------------------------------------------------------

    def join(self, collector: int, fingerprint: dict[str, str]) -> dict[str, Any]:
        """A collector's place, from now on the caller's alone: ``generation``, and what has been ``reached`` so far.

        The episodes that an earlier holder had in flight are closed.

        Raises:
            UserError: other code or another configuration; no such place.
        """
        self.check_fits(fingerprint)
        if collector not in self.slots:
            raise UserError(f"there is no place {collector}: num_collectors={self.settings.collectors}")
        with self._lock:
            slot = self.slots[collector]
            if slot.received >= 0:
                self.learner.interrupt(self._rows(collector))
            slot.generation, slot.received = slot.generation + 1, -1
            self.batches.write(b"", collector, slot.generation, -1, self.learner.steps)
            return {"generation": slot.generation, "reached": self.learner.reached()}

    def check_fits(self, fingerprint: dict[str, str]) -> None:
        """Refuse a collector of other code or another configuration.

        Raises:
            UserError: naming both.
        """
        mine = self.settings.fingerprint
        for name in mine:
            if mine[name] != fingerprint.get(name):
                raise UserError(
                    f"a collector with {name} {fingerprint.get(name)} wants to join a learner with {name} {mine[name]}: "
                    "run the same on both"
                )

    def push(self, collector: int, generation: int, number: int, message: bytes) -> dict[str, Any]:
        """Take a batch of frames, unless it has been had; it is on disk before this returns.

        Args:
            collector: whose.
            generation: from ``join``.
            number: of the batch, 0, 1, ... in this generation.
            message: ``vla_rl.learner.messages``: frames, or decisions and the ``steps`` since the last batch, with fields ``size``,
                ``rows`` (of the collector's own), ``episodes`` (successes of those that ended), ``version`` (of the weights
                it was played with), ``told`` (by its environment) and ``safety_stops`` (since the last batch).

        Returns:
            ``reached`` by all, ``version`` of the newest weights, ``wait`` whether to hold on, ``stop`` whether all is done.

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
                self.batches.write(message, collector, generation, number, self.learner.steps)
                self._take(collector, number, message)
            self._wanted.notify()
            return self.hail()

    def hail(self, seconds: float = 0.0) -> dict[str, Any]:
        """What ``push`` returns: at once, or when collectors need not hold on any more, after ``seconds`` at the latest."""
        until = time.monotonic() + seconds
        with self._wanted:
            while not self._over() and self._behind() and self.failure is None and time.monotonic() < until:
                self._wanted.wait(0.01)
            self._check()
            return {
                "reached": self.learner.reached(),
                "version": self.published.version,
                "wait": self._behind(),
                "stop": self._over(),
            }

    def weights_since(self, version: int) -> list[bytes]:
        """Packed deltas that bring ``version`` up to date (``Published.since``); updates under way are not waited for."""
        with self._publishing:
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
                "due": self._owed(),
                "episodes": self.tally.episodes,
                "recent": list(self.recent),
                "safety_stops": self.tally.safety_stops,
                "told": dict(self.told),
                "seconds": self._seconds(),
                "collected": {place: slot.steps for place, slot in self.slots.items()},
                "metrics": self.metrics
                | {"staleness": lag, "repeated": self.repeated, "recovered": self.recovered},
            }

    def save(self, folder: str) -> dict[str, Any]:
        """Write this learner's part of a checkpoint; returns what the trainer's part has to say (``trainer.json``).

        Of several learners all have to be told to; they write after the same update.
        """
        with self._wanted:
            self._save_to = Path(folder)
            self._wanted.notify_all()
            while self._save_to is not None and self.failure is None:
                self._wanted.wait(0.05)
            self._check()
            return {
                "steps": self.learner.steps,
                "tally": dict(self.tally.__dict__),
                TABLE: {place: dict(slot.__dict__) for place, slot in self.slots.items()},
            }

    def _save(self) -> None:
        assert self._save_to is not None
        self.learner.save(self._save_to)
        self.batches.rotate()
        self.tally.seconds, self.tally.recent = self._seconds(), list(self.recent)
        self._save_to = None
        self._wanted.notify_all()

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
                due = self._owed()
            if not due:
                return 0
            time.sleep(0.05)
        return due

    # ---- inside -----------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure

    @property
    def _half_done(self) -> bool:
        """An iteration's updates are under way, which no checkpoint keeps."""
        return self.learner.on_policy and self.learner.left > 0

    @property
    def _in_step(self) -> bool:
        """Whether an iteration's updates begin and end where all learners have said so."""
        return self.settings.learners > 1 and self.learner.on_policy

    def _owed(self) -> int:
        """Updates that are due, also if nobody collects any more; an iteration that others have not collected is none."""
        return self.learner.left if self._in_step else self.learner.updates_due()

    def _over(self) -> bool:
        return self.stopping or self.learner.steps >= self.settings.steps

    def _behind(self) -> bool:
        """Collectors are to wait: more updates are owed than may be; on policy, this version's share has been played."""
        if self.learner.on_policy:
            return self.learner.ready
        return self.learner.updates_due() > self.settings.max_due

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _rows(self, collector: int) -> Tensor:
        return torch.arange(self.settings.rows) + self._first_row(collector)

    def _first_row(self, collector: int) -> int:
        return collector // self.settings.learners * self.settings.rows

    def _take(self, collector: int, number: int, message: bytes) -> None:
        _, tensors, fields = unpack(message)
        rows = torch.tensor(fields["rows"], dtype=torch.long) + self._first_row(collector)
        taken = unflatten(tensors, fields["size"]) if len(rows) else None
        before = self.learner.reached()
        if self.decides:
            self.learner.take_over(taken, rows, fields["steps"])
        else:
            self.learner.observe(taken, rows)
        slot = self.slots[collector]
        slot.received = number
        for name, count in self.learner.reached().items():
            setattr(slot, name, getattr(slot, name) + count - before[name])
        self.tally.episodes += len(fields["episodes"])
        self.recent.extend(bool(success) for success in fields["episodes"])
        if told := fields.get("told"):  # a journal may be older than what environments say
            self.told[collector] = told
        self.tally.safety_stops += fields.get("safety_stops", 0)
        if (then := self._updates_of.get(fields["version"])) is not None:
            self.lag.append(self.learner.updates - then)

    def _work(self) -> None:
        """Updates, for as long as any are due."""
        try:
            while True:
                if not self._go_on():
                    self._rest()
                time.sleep(2e-4)  # long enough for whoever waits for the lock to have it
        except Exception as error:  # told to whoever asks next
            # A loss that is not finite would be so again.
            lost = isinstance(error, RuntimeError) and not isinstance(error, NonFiniteError)
            if lost and self.settings.learners > 1:
                self.abandoned(error)
            self.failure = error

    def _rest(self) -> None:
        """Until there may be something to do."""
        with self._wanted:
            if self.settings.learners > 1:  # the others are not to wait
                self._wanted.wait(0.02)
            else:
                self._wanted.wait_for(
                    lambda: self._save_to is not None or self.learner.updates_due() > 0, 0.2
                )

    def abandoned(self, error: Exception) -> None:
        """Another learner is gone, without which none can go on."""

    def _go_on(self) -> bool:
        """One burst of updates, and whatever else it is time for; False: there was nothing to do."""
        with self._lock:
            names = tuple(self.learner.reached())
            own = [sum(getattr(slot, name) for slot in self.slots.values()) for name in names]
            able = self.learner.can_update if self.settings.learners > 1 else True
            mine = (*own, able, self._save_to is not None)
        *counts, able, saving = self.ranks.sums(*mine)
        with self._lock:
            if self.settings.learners > 1:
                self.learner.be_at(**{name: int(count) for name, count in zip(names, counts, strict=True)})
            due = self.learner.updates_due() if able == self.settings.learners else 0
            first = not self.learner.updates
            if due:
                self.metrics |= make_updates(self.learner, min(due, 1 if first or self._in_step else BURST))
            if first and due:
                self.ranks.share(self.learner)  # what each has standardised from its own observations
            late = time.monotonic() - self._published_at > self.settings.publish
            if not self._half_done and (late or self.learner.on_policy):
                self._publish()
            if saving == self.settings.learners and self._save_to is not None and not self._half_done:
                self._save()
        return bool(due)

    def _publish(self) -> None:
        if self._updates_of[self.published.version] == self.learner.updates:
            return
        self._published_at = time.monotonic()
        with self._publishing:
            version = self.published.publish(weights(self.learner))
        self._updates_of[version] = self.learner.updates
        for old in list(self._updates_of)[:-1000]:
            del self._updates_of[old]

    # ---- on disk ----------------------------------------------------------------------------------------

    def _restore(self) -> None:
        """The newest checkpoint, and the batches that were journalled after it."""
        checkpoint = RunFolder.latest_in(Path(self.settings.run))
        if checkpoint is None:
            self._differ()
        else:
            self._load(checkpoint)
        for record in self.batches.records():
            self._replay(record)

    def _differ(self) -> None:
        """Draw other batches than the learners that have begun with the same generators."""
        if self.settings.rank:
            self.learner.reseed(self.settings.seed + 7919 * self.settings.rank)

    def _load(self, checkpoint: Path) -> None:
        state = json.loads((checkpoint / "trainer.json").read_text())
        table = state.get(TABLE)
        if table is not None:
            check_places(table, state.get(LEARNERS, 1), self.settings.collectors, self.settings.learners)
            self.slots = {place: Slot(**table[place]) for place in self.slots}
        shard = checkpoint / part_of(self.settings.rank)
        # Of a run that has had one learner so far, which is the case at its very beginning, all begin with the same.
        self.learner.load(shard if shard.is_dir() else checkpoint / part_of(0))
        if not shard.is_dir():
            self._differ()
        if self.settings.rank:  # what the first one tells of is told once
            return
        progress = state["progress"]
        self.tally = Tally(
            **{name: progress[name] for name in Tally.__dataclass_fields__ if name in progress}
        )
        self.recent.extend(self.tally.recent)

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
