"""What ``vla_rl.train`` asks of an algorithm."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from tensordict import TensorDict
from torch import Tensor

from vla_rl.policies.base import Policy


class Algorithm(Protocol):
    """Learns from frames; the loop collects, calls ``observe`` and then ``update`` as often as it says."""

    policy: Policy
    """Acts while collecting; explores unless ``deterministic``."""

    def observe(self, frames: TensorDict, rows: Tensor) -> None:
        """Take k frames of the environment rows ``rows`` [k] (format: ``vla_rl.rollout.collector``)."""
        ...

    def add_demonstrations(self, frames: TensorDict) -> None:
        """Take a sequence of frames [T] of whole episodes; kept apart from online data."""
        ...

    def updates_due(self, env_steps: int) -> int:
        """How many ``update`` calls ``env_steps`` new steps have earned."""
        ...

    def update(self) -> dict[str, Tensor]:
        """One learning step; metrics are 0-d tensors.

        Raises:
            NonFiniteError: a loss is NaN or infinite.
        """
        ...

    def save(self, folder: Path) -> None:
        """Everything needed to continue bit for bit, as safetensors + JSON."""
        ...

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote."""
        ...
