"""What a distributed learner is made of, and what it remembers of its collectors: plain enough to travel and to be saved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.policies.base import PolicySpec


@dataclass
class Settings:
    """What a learner is made of; plain enough to travel.

    Attributes:
        algorithm: its configuration (plain containers with ``_target_``).
        base: spec of the frozen base, which acts elsewhere.
        policy: the base's configuration, where it is what learns or is needed to; None = only its spec is.
        env: spec of the environment.
        rows: of each collector.
        collectors: how many at most, guests among them.
        guests: how many of them may come and go; theirs are the last places.
        run: folder of the run.
        steps: environment steps at which all stop.
        fingerprint: of code and configuration; collectors of another one are refused.
        seed: of everything random here.
        threads: torch threads.
        publish: seconds between two versions of the weights.
        max_due: updates owed from which collectors wait.
        learners: how many make every update together; collector i is one of learner i % ``learners``.
        rank: which of them this is.
        gpus: of each learner; with some, a learner's ``cuda`` is its own.
        meeting: ``host:port`` of the first, for the others.
        shard: whether each has a part of the policy's weights, gradients and optimiser state, not all of it.
    """

    algorithm: dict[str, Any]
    base: PolicySpec
    env: EnvSpec
    rows: int
    collectors: int
    run: str
    steps: int
    fingerprint: dict[str, str]
    policy: dict[str, Any] | None = None
    seed: int = 0
    threads: int = 1
    publish: float = 1.0
    max_due: int = 2000
    learners: int = 1
    rank: int = 0
    guests: int = 0
    gpus: float = 0.0
    meeting: str | None = None
    shard: bool = False

    def mine(self) -> dict[str, Any]:
        """The algorithm's configuration for one of the learners, see ``share_of_one``."""
        return share_of_one(self.algorithm, self.learners)

    @property
    def places(self) -> int:
        """Collectors that one learner has place for."""
        return places_of_one(self.collectors, self.learners)


def places_of_one(places: int, learners: int) -> int:
    """Collectors that each of several learners has place for, of all ``places``."""
    return -(-places // learners)


def learners_of(config: Any) -> int:
    """Learners of a run; one where its configuration is older than they are."""
    return int(config.get("num_learners") or 1)


def places_of(config: Any) -> int:
    """Collectors that a run has place for: its own, and guests.

    Args:
        config: of the run.
    """
    launcher = config.get("launcher") or {}
    return int(config.get("num_collectors") or 1) + int(launcher.get("guests") or 0)


SHARED = ("capacity", "decisions", "critic_memory", "memory")
"""Settings of which each of several learners has its part."""


def share_of_one(algorithm: dict[str, Any], learners: int) -> dict[str, Any]:
    """An algorithm's configuration for one of several learners: its part of each batch and of the replay.

    Raises:
        UserError: a batch that cannot be divided.
    """
    if learners == 1:
        return algorithm
    size = algorithm["batch_size"]
    if size % learners:
        raise UserError(
            f"algorithm.batch_size={size} cannot be divided among num_learners={learners}: choose a multiple of it"
        )
    parts = {name: -(-algorithm[name] // learners) for name in SHARED if algorithm.get(name)}
    return algorithm | {"batch_size": size // learners} | parts


@dataclass
class Slot:
    """One collector's place: ``rows`` rows of the replay.

    Attributes:
        generation: how many have had it; only the newest one's batches count.
        received: number of its newest batch; -1 = none.
        steps: environment steps from here, of all generations.
        decided: decisions from here, where an algorithm counts them.
    """

    generation: int = 0
    received: int = -1
    steps: int = 0
    decided: int = 0


@dataclass
class Tally:
    """What all collectors have done; saved with every checkpoint."""

    episodes: int = 0
    recent: list[bool] = field(default_factory=list)
    seconds: float = 0.0
    safety_stops: int = 0
