"""The precision of an update's matrix products; weights, optimisers and losses stay in float32."""

from __future__ import annotations

import torch

from vla_rl.config import nearest
from vla_rl.errors import UserError

PRECISIONS = ("float32", "bfloat16")


def check_precision(precision: str) -> None:
    """Refuse another one.

    Raises:
        UserError: with the nearest that there is.
    """
    if precision not in PRECISIONS:
        raise UserError(f"algorithm.precision={precision}: {nearest(precision, PRECISIONS)}")


def products(device: torch.device, precision: str) -> torch.autocast:
    """Within it matrix products on ``device`` are of ``precision``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
