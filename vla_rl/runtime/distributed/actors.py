"""The parts of distributed training as Ray actors, and what they say to one another when one of them is gone."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla_rl.errors import UserError
from vla_rl.policies.remote import Remote
from vla_rl.runtime.distributed.batches import TABLE, part_of
from vla_rl.runtime.distributed.collector import PATIENCE, DistributedCollector, Unreachable
from vla_rl.runtime.distributed.learner import DistributedLearner
from vla_rl.runtime.distributed.settings import Settings
from vla_rl.serving.client import RemoteError
from vla_rl.serving.protocol import VERSION

log = logging.getLogger("vla_rl.distributed")

NAMESPACE = "vla_rl"
"""Of the learners' names in a Ray cluster."""

UNWATCHED = {"RAY_enable_metrics_collection": "0", "RAY_task_events_report_interval_ms": "0"}
"""Ray's own metrics and events of each call, which only its dashboard shows: a cluster that is started for a run has none."""

BEHIND = 5
"""Niceness of collectors: where cores are fewer than processes the learner has one of its own, or collectors that took a part of it
would wait for its updates afterwards, with a core idle."""

LEASE = 60.0
"""Seconds after a guest's last sign of life in which its place is kept."""

ANSWER = 60.0
"""Seconds that one call may take."""

SAVING = 300.0
"""Seconds that writing a part of a checkpoint may take, replay and all."""


def connect(address: str | None, cpus: int | None = None) -> tuple[Any, bool]:
    """Ray, started here or joined at ``address``, and whether it has to be shut down afterwards.

    Args:
        address: of a cluster (``auto``, ``ray://HOST:10001``); None = one of this machine's own, for this run.
        cpus: of the latter; None = as many as there are.

    Raises:
        UserError: Ray is not installed or not reachable.
    """
    local = "launcher=local trains in this process"
    try:
        import ray
    except ImportError as error:
        raise UserError(f"launcher=ray needs Ray (pip install ray); {local}") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if ray.is_initialized():
        return ray, False
    if address not in (None, "auto"):
        host, _, port = str(address).removeprefix("ray://").rpartition(":")
        try:  # Ray itself would try for a minute
            socket.create_connection((host, int(port)), timeout=5.0).close()
        except (OSError, ValueError) as error:
            raise UserError(f"launcher.address={address}: nobody answers there ({error}); {local}") from error
    options: dict[str, Any] = {"namespace": NAMESPACE}
    if address is None:
        options |= {"include_dashboard": False, "num_cpus": cpus}
        for name, value in UNWATCHED.items():
            os.environ.setdefault(name, value)
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=True, **options)
    except Exception as error:  # ConnectionError, ValueError, RuntimeError, by what is wrong
        text = str(error).strip().splitlines()
        raise UserError(
            f"launcher.address={address}: Ray is not reachable ({text[0] if text else type(error).__name__}); {local}"
        ) from error
    return ray, True


def asked(ray: Any, reference: Any, seconds: float = ANSWER) -> Any:
    """What a call to an actor returns.

    Raises:
        Unreachable: the actor has died, or does not answer; it may be started again.
        UserError: it cannot be started at all.
        Exception: as raised in the actor.
    """
    try:
        return ray.get(reference, timeout=seconds)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
        if "creation task" in str(error):  # its constructor failed, and would fail again
            lines = [line for line in str(error).strip().splitlines() if line.strip()]
            raise UserError(f"a part of the run does not start: {lines[-1].strip()}") from error
        raise Unreachable(type(error).__name__) from error


class ShardActor(DistributedLearner):
    """One of several learners, in a process of its own. Where another one dies all end, and begin anew together."""

    def __init__(self, settings: Settings, folder: str) -> None:
        os.chdir(folder)
        super().__init__(settings)

    def abandoned(self, error: Exception) -> None:
        """End the process: updates are made together or not at all."""
        log.warning("learner %d has lost another: %s", self.settings.rank, error)
        os._exit(1)

    def pid(self) -> int:
        """Of its process."""
        return os.getpid()


class LearnerActor(ShardActor):
    """The first learner, which Ray starts again when it dies; it starts the others, which end with it."""

    def __init__(self, settings: Settings, folder: str, config: dict[str, Any]) -> None:
        self.config = config
        self.guests: dict[int, float] = {}
        """Place -> when its guest has last been heard of, monotonic."""
        self.others: list[Any] = []
        if settings.learners > 1:
            import ray

            settings = replace(settings, meeting=f"{ray.util.get_node_ip_address()}:{_free_port()}")
            remote = ray.remote(**options_of(settings))(ShardActor)
            self.others = [
                remote.remote(replace(settings, rank=rank), folder) for rank in range(1, settings.learners)
            ]
        super().__init__(settings, folder)

    def invite(self) -> dict[str, Any]:
        """What a guest needs to know: ``settings`` and the run's ``config``."""
        return {"settings": self.settings, "config": self.config}

    def admit(self, fingerprint: dict[str, str]) -> int:
        """A free place for a guest, its own until it leaves or has not been heard of for ``LEASE`` seconds.

        Raises:
            UserError: other code than the learner's, or no place.
        """
        self.check_fits(fingerprint)
        first, now = self.settings.collectors - self.settings.guests, time.monotonic()
        with self._lock:
            for place in range(first, self.settings.collectors):
                if now - self.guests.get(place, -LEASE) >= LEASE:
                    self.guests[place] = now
                    return place
        raise UserError(
            f"all places for guests are taken (launcher.guests={self.settings.guests}): resume the run with more, or wait"
        )

    def renew(self, place: int) -> None:
        """A guest's sign of life."""
        self.guests[place] = time.monotonic()

    def leave(self, place: int) -> None:
        """A guest gives its place back."""
        self.guests.pop(place, None)

    def shard(self, collector: int) -> Any:
        """Who has the place of a collector; None = this one."""
        rank = collector % self.settings.learners
        return self.others[rank - 1] if rank else None

    def status(self) -> dict[str, Any]:
        """Of all learners."""
        status = super().status()
        for other in self._ask_others("status"):
            status["episodes"] += other["episodes"]
            status["recent"] += other["recent"]
            status["safety_stops"] += other["safety_stops"]
            status["collected"] |= other["collected"]
            status["told"] |= other["told"]
            for name in ("repeated", "recovered"):
                status["metrics"][name] += other["metrics"][name]
        return status

    def save(self, folder: str) -> dict[str, Any]:
        """All parts of a checkpoint, beside one another: ``folder`` is this one's."""
        parts = [f"{Path(folder).parent / part_of(rank)}" for rank in range(1, self.settings.learners)]
        references = [other.save.remote(part) for other, part in zip(self.others, parts, strict=True)]
        said = super().save(folder)
        for other in self._answers(references, SAVING):
            for name in ("episodes", "recent", "safety_stops"):
                said["tally"][name] += other["tally"][name]
            said[TABLE] |= other[TABLE]
        said[TABLE] = [said[TABLE][place] for place in sorted(said[TABLE])]
        return said

    def stop(self) -> None:
        """Tell all collectors to end."""
        super().stop()
        self._ask_others("stop")

    def _ask_others(self, method: str) -> list[Any]:
        return self._answers([getattr(other, method).remote() for other in self.others])

    def _answers(self, references: list[Any], seconds: float = ANSWER) -> list[Any]:
        if not references:
            return []
        import ray

        return [asked(ray, reference, seconds) for reference in references]


def options_of(settings: Settings) -> dict[str, Any]:
    """Ray's, of each learner: how many calls it answers at a time (of collectors, the driver and others), and what it takes."""
    return {"num_cpus": 0, "num_gpus": settings.gpus, "max_concurrency": 6 + 2 * settings.collectors}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def name_of(run: str) -> str:
    """Of a run's learner in the Ray cluster."""
    return f"learner of {run}"


class RayLearner:
    """A learner actor as a collector sees it.

    Args:
        handle: of the ``LearnerActor``, which knows who of several has the collector's place.
        collector: its number.
    """

    def __init__(self, handle: Any, collector: int) -> None:
        import ray

        self.ray, self.handle, self.collector = ray, handle, collector
        self._mine: Any = None

    def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            if self._mine is None:
                self._mine = asked(self.ray, self.handle.shard.remote(self.collector)) or self.handle
            return asked(self.ray, getattr(self._mine, method).remote(*arguments))
        except Unreachable:
            self._mine = None  # another may have its place
            raise

    def join(self, collector: int, fingerprint: dict[str, str]) -> dict[str, Any]:
        """See ``DistributedLearner``."""
        return self._ask("join", collector, fingerprint)

    def push(self, collector: int, generation: int, number: int, message: bytes) -> dict[str, Any]:
        """See ``DistributedLearner``."""
        return self._ask("push", collector, generation, number, message)

    def hail(self, seconds: float = 0.0) -> dict[str, Any]:
        """See ``DistributedLearner``."""
        return self._ask("hail", seconds)

    def weights_since(self, version: int) -> list[bytes]:
        """See ``DistributedLearner``."""
        return self._ask("weights_since", version)


class InferenceActor:
    """A base policy that answers several collectors, their questions of one moment in one forward pass.

    Args:
        policy: of the run's configuration (plain containers).
        threads: torch threads.
        folder: working directory, which relative paths are in.
        window: seconds in which questions are joined.
    """

    def __init__(self, policy: dict[str, Any], threads: int, folder: str, window: float = 0.003) -> None:
        from omegaconf import OmegaConf

        from vla_rl.policies.load import load_base
        from vla_rl.runtime.threads import set_threads
        from vla_rl.serving.server import PolicyService

        os.chdir(folder)
        set_threads(threads)
        open_loop: Any = load_base(OmegaConf.create(policy))
        self.service = PolicyService(open_loop.base, window=window)

    def answer(self, raw: bytes) -> bytes:
        """To one message of ``vla_rl.serving``."""
        return self.service.answer(raw)

    def counts(self) -> tuple[int, int]:
        """Questions, and the forward passes that answered them."""
        return self.service.batcher.requests, self.service.batcher.passes

    def pid(self) -> int:
        """Of its process."""
        return os.getpid()


class Inferred(Remote):
    """The policy of an ``InferenceActor``: as ``Remote``, with Ray in place of a socket.

    Args:
        handles: of several; this collector begins with the one at ``first`` and goes on with the next when one dies.
        first: number of the collector.
        patience: seconds in which a dead one may come back.
    """

    def __init__(self, handles: Sequence[Any], first: int, patience: float = PATIENCE) -> None:
        import ray

        self.ray, self.handles, self.turn = ray, list(handles), first
        self.address, self.timeout, self.patience = "the inference worker", ANSWER, patience
        self._connection, self._number = None, 0
        self._take(self._ask({"method": "hello", "protocol": VERSION}))

    def _once(self, message: dict[str, Any]) -> dict[str, Any]:
        from vla_rl.serving.protocol import pack, unpack

        self._number += 1
        handle = self.handles[self.turn % len(self.handles)]
        try:
            raw = asked(self.ray, handle.answer.remote(pack({"id": self._number} | message)))
        except Unreachable as error:
            self.turn += 1
            raise TimeoutError(str(error)) from error
        reply = unpack(raw)
        if "error" in reply:
            raise RemoteError(f"{self.address} refuses: {reply['error']}")
        if reply.pop("id", None) != self._number:
            raise RemoteError(f"{self.address} answers another question")
        return reply


class CollectorActor:
    """``DistributedCollector`` in a process of its own.

    Args:
        folder: working directory, which relative paths are in.
    """

    def __init__(self, folder: str) -> None:
        os.chdir(folder)
        os.nice(BEHIND)
        self.collector: DistributedCollector | None = None

    def run(
        self,
        index: int,
        config: dict[str, Any],
        learner: Any,
        fingerprint: dict[str, str],
        inference: Sequence[Any],
        every: int,
    ) -> int:
        """Join and play to the end; see ``DistributedCollector``."""
        base = None
        if inference:
            from vla_rl.policies.open_loop import OpenLoop

            candidates = int(config["algorithm"].get("candidates", 1) or 1)
            base = OpenLoop(Inferred(inference, index), config["policy"].get("horizon"), candidates)
        collector = DistributedCollector(
            index, config, RayLearner(learner, index), fingerprint, base=base, every=every
        )
        self.collector = collector
        try:
            return collector.run()
        finally:
            collector.close()

    def exhibits(self) -> dict[str, Any]:
        """Of its environment (answered beside ``run``, and after it)."""
        return {} if self.collector is None else self.collector.env.exhibits()

    def pid(self) -> int:
        """Of its process (answered beside ``run``)."""
        return os.getpid()
