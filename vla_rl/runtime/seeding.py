"""Seeds and generator states, saved as JSON (never pickle)."""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import torch

from vla_rl.errors import UserError


def seed_everything(seed: int) -> None:
    """Seed python, numpy's global generator and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """The global generators' states, ready for JSON."""
    version, internal, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return {
        "python": [version, list(internal), gauss],
        "numpy": [_text(np.asarray(keys, np.uint32).tobytes()), int(position), int(has_gauss), float(cached)],
        "torch": _text(torch.random.get_rng_state().numpy().tobytes()),
        "cuda": [_text(state.numpy().tobytes()) for state in cuda],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what ``rng_state`` gave.

    Raises:
        UserError: the state is incomplete or damaged; nothing was changed.
    """
    try:
        version, internal, gauss = state["python"]
        python = (version, tuple(internal), gauss)
        keys, position, has_gauss, cached = state["numpy"]
        array = np.frombuffer(base64.b64decode(keys), np.uint32)
        words = [_tensor(state["torch"]), *(_tensor(text) for text in state.get("cuda", []))]
        if array.shape != (624,) or words[0].shape != torch.random.get_rng_state().shape:
            raise ValueError("wrong length")
        random.Random().setstate(python)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"the checkpoint's random generator state is damaged ({error}): use an earlier checkpoint"
        ) from error
    random.setstate(python)
    np.random.set_state(("MT19937", array, position, has_gauss, cached))
    torch.random.set_rng_state(words[0])
    # Fewer or no devices than when it was saved: those that are there.
    if len(words) > 1 and torch.cuda.is_available():
        for device, word in zip(range(torch.cuda.device_count()), words[1:]):  # noqa: B905
            torch.cuda.set_rng_state(word, device)


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
