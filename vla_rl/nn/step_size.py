"""The step size of supervised training: up in a line, then down along a cosine."""

from __future__ import annotations

import math


def warmed_cosine(lr: float, warmup: int, step: int, steps: int) -> float:
    """Of ``step`` of ``steps``: to ``lr`` within ``warmup`` steps, then along a cosine to 2 % of it."""
    warm = min(1.0, (step + 1) / max(1, warmup))
    return lr * warm * (0.49 * (1 + math.cos(math.pi * step / steps)) + 0.02)
