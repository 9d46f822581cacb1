"""A simulator that takes as long as a robot: each control step lasts at least a period of the wall clock."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from sim.base import SimEnv
from sim.serial import load_adapter
from vla_rl.errors import UserError


class WaitingEnv:
    """``inner`` on a clock (see ``sim.base.SimEnv``): what learning asynchronously from robots is tried and measured with.

    A step that comes late is not caught up with: the next period begins with it.

    Args:
        id: for ``inner``.
        inner: ``module:Class`` of the adapter.
        period_s: seconds of a control step; 0.1 = a robot at 10 Hz.
        **kwargs: for ``inner``.

    Raises:
        UserError: a period that is negative, or no such adapter.
    """

    def __init__(self, id: str, *, inner: str, period_s: float, **kwargs: Any) -> None:
        if period_s < 0:
            raise UserError(f"env.period_s={period_s}: 0 or more seconds")
        self.env: SimEnv = load_adapter(inner)(id, **kwargs)
        self.period, self.spec = float(period_s), self.env.spec
        self._next = 0.0

    def reset(self, seed: int | None) -> tuple[dict[str, np.ndarray], str]:
        """Begin the episode of ``seed``, at once."""
        begun = self.env.reset(seed)
        self._next = time.monotonic() + self.period
        return begun

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, bool]:
        """One control step, over when its period is."""
        result = self.env.step(action)
        now = time.monotonic()
        time.sleep(max(0.0, self._next - now))
        self._next = max(now, self._next) + self.period
        return result

    def look(self) -> dict[str, np.ndarray]:
        """Render now."""
        return self.env.look()

    def close(self) -> None:
        """Free the simulator."""
        self.env.close()
