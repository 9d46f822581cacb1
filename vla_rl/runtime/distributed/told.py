"""What the environments of several collectors say beside frames: of an audit above all, which one process could just ask."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from vla_rl.environment import VlaVectorEnv

Told = dict[str, Any]
"""``metrics``, ``halt``, ``trusted`` of one environment, as of ``VlaVectorEnv``."""


def told_by(env: VlaVectorEnv) -> Told:
    """What ``env`` says now, plain enough for a message."""
    return {"metrics": env.metrics(), "halt": env.halt, "trusted": bool(env.trusted)}


def together(told: Collection[Told]) -> Told:
    """Of all collectors: each metric's mean over those that have it, the first reason to stop, trusted only if all are."""
    names = dict.fromkeys(name for each in told for name in each["metrics"])
    have = {name: [each["metrics"][name] for each in told if name in each["metrics"]] for name in names}
    return {
        "metrics": {name: sum(values) / len(values) for name, values in have.items()},
        "halt": next((each["halt"] for each in told if each["halt"]), None),
        "trusted": all(each["trusted"] for each in told),
    }


def beside(sheets: Collection[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Pictures uint8 [3, H, W] of one name, of several collectors, as one."""
    names = dict.fromkeys(name for each in sheets for name in each)
    return {name: torch.cat([each[name] for each in sheets if name in each], dim=2) for name in names}
