"""How an update is computed: its functions compiled or not, and the precision of its matrix products.

Weights, optimisers and losses stay in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


def compiled(wanted: bool, *functions: Callable[..., Any]) -> tuple[Any, ...]:
    """``functions`` as torch compiles them at their first call, or (not ``wanted``) as they are."""
    return tuple(torch.compile(function) for function in functions) if wanted else functions


def products(device: torch.device, precision: str) -> torch.autocast:
    """Within it matrix products on ``device`` are of ``precision``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
