"""How good a critic's values are: order correlation with time, and what it accepts or refuses."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

FLAT = 0.02
"""Values that range over less than this all along say nothing."""


def voc(values: Tensor) -> float:
    """Value-order correlation: Spearman's of values [T] with time; 0 where they never change."""
    from scipy.stats import spearmanr

    if len(values) < 2 or float(values.max() - values.min()) < 1e-6:
        return 0.0
    return float(spearmanr(values.numpy(), range(len(values))).statistic)


def voc_f1(forward: float, backward: float) -> float:
    """Harmonic mean of the correlation on a video and minus that on the reversed one, 0 where either is not positive."""
    if forward <= 0 or backward >= 0:
        return 0.0
    return 2 * forward * -backward / (forward - backward)


def precision_recall(chances: Tensor, truth: Tensor, threshold: float) -> tuple[float, float]:
    """Of "done" at ``threshold`` [N]; precision is 1 where nothing was called done."""
    called, true = chances >= threshold, truth.bool()
    right = float((called & true).sum())
    return (right / float(called.sum()) if called.any() else 1.0), right / max(1.0, float(true.sum()))


def calibrated(chances: Tensor, truth: Tensor, precision: float, least: float = 0.0) -> float:
    """The lowest threshold from ``least`` on at which "done" is right in at least ``precision`` of the cases; 1.01 (never) where there is none.

    Between two chances that occur it lies in the middle: the next ones will not be the same to the last digit.
    """
    below = least
    for threshold in chances[chances >= least].unique().tolist():
        right, found = precision_recall(chances, truth, threshold)
        if right >= precision and found > 0:
            return (below + threshold) / 2
        below = threshold
    return 1.01


def finding(chances: Tensor, truth: Tensor, recall: float) -> float:
    """The highest threshold at which at least ``recall`` of what is done is found; 0 where nothing is done."""
    done = chances[truth.bool()].sort(descending=True).values
    return float(done[math.ceil(recall * len(done)) - 1]) if len(done) else 0.0


def reliability(chances: Tensor, truth: Tensor, cells: int = 10) -> list[dict[str, float]]:
    """Per cell of chance: how many, the mean chance, and how often it was true."""
    place = (chances * cells).long().clamp(max=cells - 1)
    rows = []
    for cell in range(cells):
        inside = place == cell
        if inside.any():
            rows.append(
                {
                    "count": int(inside.sum()),
                    "chance": float(chances[inside].mean()),
                    "true": float(truth[inside].float().mean()),
                }
            )
    return rows


def flat(curves: Sequence[Tensor]) -> bool:
    """Whether none of the value curves moves: a critic that says zero to everything must not be trusted."""
    return all(float(c.max() - c.min()) < FLAT for c in curves)
