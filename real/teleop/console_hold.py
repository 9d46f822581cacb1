"""Which browser has the arm, and what becomes of it when that browser is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class TakeOver:
    """Which browser has the arm. One that goes away while it has it keeps the arm still and the policy away.

    Args:
        max_age: seconds after which a browser that has not been heard has lost the arm, for good.
        clock: seconds.
    """

    def __init__(self, max_age: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_age, self.clock = max_age, clock
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._heard, self._lost, self._begun = 0.0, False, False

    def take(self, client: int) -> bool:
        """The arm is this browser's, unless another one has it and is there."""
        with self._lock:
            if self._owner not in (None, client) and not self._silent():
                return False
            self._owner, self._heard, self._lost, self._begun = client, self.clock(), False, True
            return True

    def hand_back(self, client: int) -> bool:
        """To the policy: by the browser that has the arm, or by any once that one is lost."""
        with self._lock:
            if self._owner is None or (self._owner != client and not self._silent()):
                return False
            self._owner = None
            return True

    def heard(self, client: int) -> None:
        """A browser has given a sign of life; too late is too late."""
        with self._lock:
            if client == self._owner and not self._silent():
                self._heard = self.clock()

    def gone(self, client: int) -> None:
        """A browser has left."""
        with self._lock:
            self._lost = self._lost or client == self._owner

    def lose(self) -> None:
        """Whoever has it: something went wrong."""
        with self._lock:
            self._lost = True

    def _silent(self) -> bool:
        self._lost = self._lost or self.clock() - self._heard > self.max_age
        return self._lost

    def state(self) -> tuple[str, int | None]:
        """``free``, ``held`` or ``lost``, and whose."""
        with self._lock:
            if self._owner is None:
                return "free", None
            return ("lost" if self._silent() else "held"), self._owner

    def engaged(self) -> tuple[bool, bool, bool]:
        """(steering now, taken from the policy, begun since the last call)."""
        with self._lock:
            taken = self._owner is not None
            begun, self._begun = self._begun and taken, False
            return taken and not self._silent(), taken, begun
