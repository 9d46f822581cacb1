"""Messages between actor and learner: JSON fields and tensors in one block of bytes, never a pickle."""

from __future__ import annotations

import json
import struct
from typing import Any

import torch
from safetensors.torch import load, save
from tensordict import TensorDict
from torch import Tensor

HEAD = struct.Struct("<I")
SEPARATOR = "|"


def pack(kind: str, tensors: dict[str, Tensor] | None = None, **fields: Any) -> bytes:
    """One message. ``fields`` must be JSON."""
    head = json.dumps({"kind": kind, **fields}).encode()
    stored = {k: v.detach().cpu().clone().contiguous() for k, v in (tensors or {}).items()}
    return HEAD.pack(len(head)) + head + save(stored)


def unpack(data: bytes) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """(kind, tensors, fields) of what ``pack`` made."""
    (length,) = HEAD.unpack_from(data)
    end = HEAD.size + length
    fields = json.loads(data[HEAD.size : end])
    return fields.pop("kind"), load(data[end:]), fields


def flatten(frames: TensorDict) -> dict[str, Tensor]:
    """Nested keys joined."""
    return {
        SEPARATOR.join(key if isinstance(key, tuple) else (key,)): value
        for key, value in frames.items(True, True)
    }


def unflatten(tensors: dict[str, Tensor], size: int) -> TensorDict:
    """Frames [size] from ``flatten``."""
    nested: dict[str, Any] = {}
    for key, value in tensors.items():
        *path, last = key.split(SEPARATOR)
        place = nested
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return _frames(nested, size)


def _frames(nested: dict[str, Any], size: int) -> TensorDict:
    values = {k: _frames(v, size) if isinstance(v, dict) else v for k, v in nested.items()}
    return TensorDict(values, batch_size=torch.Size([size]))
