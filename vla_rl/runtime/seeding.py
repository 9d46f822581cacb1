"""Seeds and generator states, saved as JSON (never pickle)."""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed python, numpy's global generator and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """The global generators' states, ready for JSON."""
    version, internal, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [base64.b64encode(np.asarray(keys, np.uint32).tobytes()).decode(), position, has_gauss, cached],
        "torch": base64.b64encode(torch.random.get_rng_state().numpy().tobytes()).decode(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what ``rng_state`` gave."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    array = np.frombuffer(base64.b64decode(keys), np.uint32)
    np.random.set_state(("MT19937", array, position, has_gauss, cached))
    torch.random.set_rng_state(torch.frombuffer(bytearray(base64.b64decode(state["torch"])), dtype=torch.uint8))
