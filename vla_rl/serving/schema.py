"""What a request to a policy server may look like; everything else is refused before the policy sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.keys import TASK
from vla_rl.policies.base import Observation
from vla_rl.serving.protocol import MAX_TEXT, ProtocolError, unpack_state

MAX_ROWS = 256
"""Rows of one request."""

MAX_SIDE = 2048
"""Pixels of a picture's side."""


@dataclass
class ActRequest:
    """One decision asked for, checked.

    Attributes:
        observation: of B rows.
        state: of B rows.
        noise: initial noise [B, T', A'], or None.
        deterministic: without exploration.
    """

    observation: Observation
    state: TensorDict
    noise: Tensor | None
    deterministic: bool

    @property
    def rows(self) -> int:
        """B."""
        return int(self.state.batch_size[0])

    def joins(self, other: ActRequest) -> bool:
        """Whether both can be answered by one call of the policy."""
        same = self.deterministic == other.deterministic and (self.noise is None) == (other.noise is None)
        shapes = all(
            isinstance(v, list) or v.shape[1:] == other.observation[k].shape[1:]
            for k, v in self.observation.items()
        )
        return same and shapes


def act_request(message: dict[str, Any], spec: Any, like: TensorDict, noise_shape: Any) -> ActRequest:
    """A checked request.

    Args:
        message: ``observation``, ``state``, ``deterministic`` and, to act from a given one, ``noise``.
        spec: the policy's ``PolicySpec``.
        like: its initial state of one row.
        noise_shape: (T', A') of its initial noise, or None.

    Raises:
        ProtocolError: it does not fit; the text names the key.
    """
    extra = set(message) - {"observation", "state", "deterministic", "noise"}
    if extra or not {"observation", "state", "deterministic"} <= set(message):
        raise ProtocolError("act has observation, state, deterministic and perhaps noise")
    if type(message["deterministic"]) is not bool:
        raise ProtocolError("deterministic is true or false")
    state = unpack_state(message["state"], like)
    rows = int(state.batch_size[0])
    if not 1 <= rows <= MAX_ROWS:
        raise ProtocolError(f"{rows} rows; 1 to {MAX_ROWS} can be asked for at once")
    observation = _observation(message["observation"], spec, rows)
    noise = message.get("noise")
    if noise is not None:
        if noise_shape is None:
            raise ProtocolError("this policy does not act from a given noise")
        if (
            not isinstance(noise, Tensor)
            or noise.dtype != torch.float32
            or tuple(noise.shape) != (rows, *noise_shape)
        ):
            raise ProtocolError(f"noise must be float32 {(rows, *noise_shape)}")
    return ActRequest(observation, state, noise, message["deterministic"])


def _observation(value: Any, spec: Any, rows: int) -> Observation:
    wanted = {*spec.state_keys, *spec.image_keys, TASK}
    if not isinstance(value, dict) or set(value) != wanted:
        raise ProtocolError(f"the observation has {', '.join(sorted(wanted))}")
    for key in spec.state_keys:
        vector = value[key]
        if (
            not isinstance(vector, Tensor)
            or vector.dtype != torch.float32
            or vector.dim() < 2
            or len(vector) != rows
        ):
            raise ProtocolError(f"{key} must be float32 [{rows}, n]")
    for key in spec.image_keys:
        picture = value[key]
        right = isinstance(picture, Tensor) and picture.dtype == torch.uint8 and picture.dim() == 4
        if not right or tuple(picture.shape[:2]) != (rows, 3) or max(picture.shape[2:]) > MAX_SIDE:
            raise ProtocolError(f"{key} must be uint8 [{rows}, 3, H, W], sides at most {MAX_SIDE}")
    tasks = value[TASK]
    right = isinstance(tasks, list) and len(tasks) == rows
    if not right or not all(isinstance(t, str) and len(t) <= MAX_TEXT for t in tasks):
        raise ProtocolError(f"{TASK} must be {rows} sentences")
    return value
