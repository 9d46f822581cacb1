"""One simulated environment in one process: what a simulator adapter writes; ``sim.vector`` batches it."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from vla_rl.environment import EnvSpec


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

        ``truncated`` is the time limit (``spec.max_episode_steps``) and is counted here. Success terminates.
        Reward is sparse: 1 at success, else 0.
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
