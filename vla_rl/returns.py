"""Advantages of on-policy data (generalised advantage estimation, arXiv 1506.02438)."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    ended: Tensor,
    gamma: float,
    lam: float,
) -> Tensor:
    """Advantages [T, B] of B sequences of decisions.

    A time limit is not an end of the task: there ``ended`` is true and ``terminated`` is not, so the advantage counts
    what the critic expects of the observation it was cut at, and nothing of the episode that follows in the row.

    Args:
        reward: summed over the decision's steps [T, B].
        value: of the observation decided on [T, B].
        next_value: of the observation after the decision, the closing one where the episode ended [T, B].
        terminated: the task ended there [T, B] bool.
        ended: the episode did, for whatever reason [T, B] bool.
        gamma: discount per decision.
        lam: GAE's lambda.
    """
    delta = reward + gamma * next_value * ~terminated - value
    advantage = torch.zeros_like(delta)
    after = torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        after = delta[t] + gamma * lam * after * ~(ended[t] | terminated[t])
        advantage[t] = after
    return advantage
