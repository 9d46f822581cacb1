"""What ``vla_rl.train`` asks of an algorithm."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.environment import VlaVectorEnv
from vla_rl.policies.base import Policy


class Algorithm(Protocol):
    """Learns from frames; the loop collects, calls ``observe`` and then ``update`` as often as it says."""

    config: Any
    """A typed dataclass, usable as a hydra structured config."""

    base: Policy
    """Frozen; what it began from."""

    on_policy: bool
    """Its updates are done all at once: nothing is collected half-way."""

    policy: Policy
    """Acts while collecting; explores unless ``deterministic``."""

    eval_policy: Policy
    """Acts in evaluation; shares its networks with ``policy``."""

    @property
    def ready(self) -> bool:
        """Whether there is enough data to ``update``."""
        ...

    def observe(self, frames: TensorDict, rows: Tensor) -> None:
        """Take k frames of the environment rows ``rows`` [k] (format: ``vla_rl.rollout.collector``)."""
        ...

    def add_demonstrations(self, frames: TensorDict, rows: Tensor | None = None) -> None:
        """Take a sequence of frames [T] of whole episodes; kept apart from online data."""
        ...

    def updates_due(self, env_steps: int | None = None) -> int:
        """How many ``update`` calls the steps observed so far have earned; ``env_steps`` overrides their count."""
        ...

    def update(self) -> dict[str, Tensor]:
        """One learning step; metrics are 0-d tensors.

        Raises:
            NonFiniteError: a loss is NaN or infinite.
        """
        ...

    def save(self, folder: Path, *, replay: bool = True) -> None:
        """Everything needed to continue bit for bit, as safetensors + JSON; ``replay=False``: networks only."""
        ...

    def load(self, folder: Path, *, replay: bool = True) -> None:
        """Read what ``save`` wrote."""
        ...


def tell_discount(env: VlaVectorEnv, algorithm: Any) -> None:
    """Tell ``env`` what ``algorithm`` discounts by, where it values anything (``discount``: gamma, and the steps that it is of)."""
    discount: tuple[float, int] = getattr(algorithm, "discount", (1.0, 1))
    env.discounted_by(*discount)


def make_updates(algorithm: Algorithm, count: int) -> dict[str, float]:
    """Up to ``count`` updates, fewer where an iteration ends early (target KL); the mean of each metric."""
    totals: dict[str, list[Tensor]] = {}
    for _ in range(count):
        if not algorithm.updates_due():
            break
        for name, value in algorithm.update().items():
            totals.setdefault(name, []).append(value)
    return {name: float(torch.stack(values).mean()) for name, values in totals.items()}
