"""Where collection's time goes: simulator, cameras, policy, and what the collector itself adds."""

from __future__ import annotations

import time
from typing import Any

from vla_rl.environment import VlaVectorEnv
from vla_rl.policies.base import Policy
from vla_rl.rollout.collector import Collector


class _Timed:
    """Passes everything on to ``thing``; adds the time spent in ``names`` to ``seconds``."""

    def __init__(self, thing: Any, names: dict[str, str], seconds: dict[str, float]) -> None:
        self._thing, self._names, self._seconds = thing, names, seconds

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._thing, name)
        if name not in self._names:
            return value
        part, seconds = self._names[name], self._seconds

        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return value(*args, **kwargs)
            finally:
                seconds[part] += time.perf_counter() - began

        return call


def time_collection(env: VlaVectorEnv, policy: Policy, steps: int, *, seed: int = 0) -> dict[str, float]:
    """Collect at least ``steps`` environment steps, frames thrown away, and say where the time went.

    Returns:
        ``steps``, ``seconds``, ``steps_per_s``, ``looks_per_step``, the seconds in ``simulator`` (step and reset), ``cameras`` (look)
        and ``policy`` (act), ``inside``: these three together, and ``overhead``: what is left, as a fraction of them.
    """
    seconds = {"simulator": 0.0, "cameras": 0.0, "policy": 0.0}
    parts = {"step_async": "simulator", "step_wait": "simulator", "reset": "simulator", "look": "cameras"}
    timed_env: Any = _Timed(env, parts, seconds)
    timed_policy: Any = _Timed(policy, {"act": "policy"}, seconds)
    collector = Collector(timed_env, timed_policy, lambda n, _: seed + n, sink=lambda frames, rows: None)
    collector.begin()
    collector.step()  # the first look sets up the renderer
    for part in seconds:
        seconds[part] = 0.0
    before, began = collector.steps, time.perf_counter()
    while collector.steps - before < steps:
        collector.step()
    total, taken = time.perf_counter() - began, collector.steps - before
    inside = sum(seconds.values())
    return {
        "steps": taken,
        "seconds": total,
        "steps_per_s": taken / total,
        "looks_per_step": collector.looks / collector.steps,
        **seconds,
        "inside": inside,
        "overhead": (total - inside) / inside,
    }
