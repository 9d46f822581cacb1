"""Messages between a policy server and its clients: msgpack maps, arrays as (dtype, shape, bytes), nothing executable.

What comes in is checked against limits before anything is allocated, and against a schema before anything is run. There is
no pickle and no class name on the wire.
"""

from __future__ import annotations

import math
from typing import Any

import msgpack
import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

VERSION = 1
"""Of this protocol; both ends must have the same."""

MAX_BYTES = 64 * 2**20
"""Of one message."""

DTYPES = ("float32", "float64", "uint8", "int64", "bool")
"""Of arrays."""

MAX_DIMS, MAX_ITEMS, MAX_TEXT = 6, 256, 2000
"""Dimensions of an array, entries of a map or list, characters of a string."""


class ProtocolError(ValueError):
    """A message that is not one of these; its text says what is wrong with it."""


def pack(message: dict[str, Any]) -> bytes:
    """``message`` with tensors anywhere in it, as bytes."""
    data: Any = msgpack.packb(message, default=_plain, use_bin_type=True)
    return data


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "shape": list(value.shape), "data": value.tobytes()}
    raise TypeError(f"{type(value).__name__} cannot be sent")


def unpack(data: Any) -> dict[str, Any]:
    """A message, its arrays as tensors.

    Raises:
        ProtocolError: not a message within the limits.
    """
    if not isinstance(data, bytes):
        raise ProtocolError("messages are binary")
    if len(data) > MAX_BYTES:
        raise ProtocolError(f"a message of {len(data)} bytes; at most {MAX_BYTES}")
    try:
        message = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=MAX_TEXT,
            max_bin_len=MAX_BYTES,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
        )
    except Exception as error:  # msgpack has a class for each way of being broken
        raise ProtocolError(f"no msgpack within the limits ({type(error).__name__})") from error
    if not isinstance(message, dict):
        raise ProtocolError("a message is a map")
    return _tensors(message, 0)


def _tensors(value: Any, depth: int) -> Any:
    if depth > 4:
        raise ProtocolError("nested too deeply")
    if isinstance(value, dict):
        if set(value) == {"dtype", "shape", "data"}:
            return _array(value)
        return {k: _tensors(v, depth + 1) for k, v in value.items()}
    if isinstance(value, bytes):
        raise ProtocolError("bytes outside an array")
    return value


def _array(value: dict[str, Any]) -> Tensor:
    dtype, shape, data = value["dtype"], value["shape"], value["data"]
    if dtype not in DTYPES or not isinstance(shape, list) or not isinstance(data, bytes):
        raise ProtocolError(f"an array needs a dtype of {', '.join(DTYPES)}, a shape and bytes")
    if len(shape) > MAX_DIMS or not all(type(n) is int and n >= 0 for n in shape):
        raise ProtocolError(f"{shape} is no shape")
    if math.prod(shape) * np.dtype(dtype).itemsize != len(data):
        raise ProtocolError(f"{len(data)} bytes are no {dtype} array of shape {shape}")
    array = np.frombuffer(data, dtype).reshape(shape)
    if dtype.startswith("float") and not np.isfinite(array).all():
        raise ProtocolError("an array with values that are not finite")
    return torch.from_numpy(array.copy())


def pack_state(state: TensorDict) -> dict[str, Any]:
    """A policy's state, leaf by leaf."""
    return {"rows": int(state.batch_size[0]), "leaves": dict(state.flatten_keys("/").items())}


def unpack_state(value: Any, like: TensorDict) -> TensorDict:
    """A state with the leaves of ``like`` (one row), of any number of rows.

    Raises:
        ProtocolError: other leaves, shapes or types.
    """
    if not isinstance(value, dict) or set(value) != {"rows", "leaves"} or type(value["rows"]) is not int:
        raise ProtocolError("a state has rows and leaves")
    rows, leaves, wanted = value["rows"], value["leaves"], dict(like.flatten_keys("/").items())
    if rows < 0 or not isinstance(leaves, dict) or set(leaves) != set(wanted):
        raise ProtocolError(f"the state's leaves are {', '.join(wanted) or 'none'}")
    for name, leaf in leaves.items():
        shape = (rows, *wanted[name].shape[1:])
        if not isinstance(leaf, Tensor) or leaf.dtype != wanted[name].dtype or tuple(leaf.shape) != shape:
            raise ProtocolError(f"state leaf {name} must be {wanted[name].dtype} {shape}")
    return TensorDict(leaves, batch_size=[rows]).unflatten_keys("/")
