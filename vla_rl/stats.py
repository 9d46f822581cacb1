"""Success rates with honest intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import exp, log, sqrt
from typing import Any


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a binomial rate (95 % by default); (0, 1) when nothing was tried."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} tries")
    if n == 0:
        return 0.0, 1.0
    rate = successes / n
    centre = rate + z * z / (2 * n)
    spread = z * sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def _one(successes: Sequence[bool]) -> dict[str, Any]:
    won, n = sum(map(bool, successes)), len(successes)
    return {"successes": won, "episodes": n, "rate": won / n if n else 0.0, "wilson95": list(wilson(won, n))}


def summary(successes: Sequence[bool], task_ids: Sequence[str]) -> dict[str, Any]:
    """Success of all episodes and of each task: ``{"successes", "episodes", "rate", "wilson95", "per_task"}``."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for success, task in zip(successes, task_ids, strict=True):
        groups[task].append(bool(success))
    return _one(successes) | {"per_task": {task: _one(groups[task]) for task in sorted(groups)}}


def ratio_row(name: str, unit: str, ours: Sequence[float], peer: Sequence[float]) -> dict[str, Any]:
    """A benchmark's row: both sides' means and the ratio of what was measured in pairs, with its interval."""
    ratio, *interval = ratio_interval(ours, peer)
    means = {"ours": sum(ours) / len(ours), "peer": sum(peer) / len(peer)}
    return {"name": name, **means, "unit": unit, "ratio": ratio, "ratio95": interval}


def ratio_interval(ours: Sequence[float], peer: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean of paired ratios ours/peer with its 95 % Student interval (on logarithms).

    One pair has no interval: (ratio, ratio, ratio).
    """
    from scipy.stats import t

    logs = [log(a / b) for a, b in zip(ours, peer, strict=True)]
    n = len(logs)
    mean = sum(logs) / n
    spread = 0.0
    if n > 1:
        variance = sum((x - mean) ** 2 for x in logs) / (n - 1)
        spread = float(t.ppf(0.975, n - 1)) * sqrt(variance / n)
    return exp(mean), exp(mean - spread), exp(mean + spread)
