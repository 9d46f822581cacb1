"""One simulated environment in one process: what a simulator adapter writes; ``sim.vector`` batches it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError


def metres(shift: Sequence[float]) -> np.ndarray:
    """``env.camera_shift`` as float64 [3].

    Raises:
        UserError: not three finite numbers.
    """
    try:
        moved = np.asarray(list(shift), np.float64)
    except (TypeError, ValueError):
        moved = np.empty(0)
    if moved.shape != (3,) or not np.isfinite(moved).all():
        raise UserError(f"env.camera_shift={shift}: it is three numbers, metres along x, y and z")
    return moved


class Ending:
    """When an episode is over: at its success or some control steps after it, or at the time limit.

    Args:
        limit: control steps.
        after_success: control steps that an episode goes on after its first success; None = to the time limit. A learned
            critic has to judge for itself, and sees here what comes after.

    Raises:
        UserError: ``after_success`` is negative.
    """

    def __init__(self, limit: int, after_success: int | None = 0) -> None:
        if after_success is not None and after_success < 0:
            raise UserError(f"env.after_success={after_success}: 0 or more steps; null = to the time limit")
        self.limit, self.after = limit, after_success
        self.begin()

    def begin(self) -> None:
        """A new episode."""
        self.steps, self.succeeded = 0, -1

    def step(self, success: bool) -> tuple[float, bool, bool, bool]:
        """Of the step that was just made: reward (1 at the first success), terminated, truncated, whether it has succeeded by now."""
        self.steps += 1
        first = success and self.succeeded < 0
        if first:
            self.succeeded = self.steps
        gone = self.steps - self.succeeded if self.succeeded >= 0 else -1
        terminated = self.after is not None and gone >= self.after
        return float(first), terminated, self.steps >= self.limit and not terminated, self.succeeded >= 0


class SimEnv(Protocol):
    """A single environment with numpy arrays. An episode is a function of its seed alone.

    ``observation`` is ``{"observation.state": float32 [S], "observation.environment_state": float32 [E]}``
    (the second only when ``spec.env_state_dim > 0``).
    """

    spec: EnvSpec

    def reset(self, seed: int | None) -> tuple[dict[str, np.ndarray], str]:
        """Begin an episode; returns observation and instruction."""
        ...

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, bool]:
        """One control step of ``action`` [A]: observation, reward, terminated, truncated, success.

        ``truncated`` is the time limit (``spec.max_episode_steps``) and is counted here. Success terminates, at once or as
        ``Ending`` says. Reward is sparse: 1 at the first success, else 0.
        """
        ...

    # Optional, both or neither: ``save_state() -> dict[str, np.ndarray]``, and ``restore(state)``, which begins an
    # episode at that very moment and returns what ``reset`` does (``vla_rl.environment.StartState``).

    def look(self) -> dict[str, np.ndarray]:
        """Render now: camera feature key -> uint8 [3, H, W] (C-contiguous)."""
        ...

    def close(self) -> None:
        """Free the simulator."""
        ...
