"""The parts of distributed training as Ray actors, and what they say to one another when one of them is gone."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from typing import Any

from vla_rl.errors import UserError
from vla_rl.policies.remote import Remote
from vla_rl.runtime.distributed.collector import DistributedCollector, Unreachable
from vla_rl.runtime.distributed.learner import DistributedLearner, Settings
from vla_rl.serving.client import RemoteError
from vla_rl.serving.protocol import VERSION

ANSWER = 60.0
"""Seconds that one call may take."""


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
    options: dict[str, Any] = {"include_dashboard": False, "num_cpus": cpus} if address is None else {}
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


class LearnerActor(DistributedLearner):
    """``DistributedLearner`` in a process of its own, which Ray starts again when it dies."""

    def __init__(self, settings: Settings, folder: str) -> None:
        os.chdir(folder)
        super().__init__(settings)

    def pid(self) -> int:
        """Of its process."""
        return os.getpid()


class RayLearner:
    """A learner actor as a collector sees it.

    Args:
        handle: of a ``LearnerActor``.
    """

    def __init__(self, handle: Any) -> None:
        import ray

        self.ray, self.handle = ray, handle

    def join(self, collector: int, fingerprint: dict[str, str]) -> dict[str, int]:
        """See ``DistributedLearner``."""
        return asked(self.ray, self.handle.join.remote(collector, fingerprint))

    def push(self, collector: int, generation: int, number: int, message: bytes) -> dict[str, Any]:
        """See ``DistributedLearner``."""
        return asked(self.ray, self.handle.push.remote(collector, generation, number, message))

    def hail(self) -> dict[str, Any]:
        """See ``DistributedLearner``."""
        return asked(self.ray, self.handle.hail.remote())

    def weights_since(self, version: int) -> list[bytes]:
        """See ``DistributedLearner``."""
        return asked(self.ray, self.handle.weights_since.remote(version))


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

    def __init__(self, handles: Sequence[Any], first: int, patience: float = 120.0) -> None:
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
            index, config, RayLearner(learner), fingerprint, base=base, every=every
        )
        try:
            return collector.run()
        finally:
            collector.close()

    def pid(self) -> int:
        """Of its process (answered beside ``run``)."""
        return os.getpid()
