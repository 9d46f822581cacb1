"""The policy contract: explicit state, batch first, tensors in and out, no hidden episode memory.

So a batch of environments with partial resets, a replay of a recorded session and a robot all run the same
code. Conformance: ``vla_rl.checks.check_policy``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError

Observation = dict[str, Any]


@dataclass(frozen=True)
class PolicySpec:
    """What a policy reads and gives.

    Attributes:
        action_dim: A.
        chunk_length: T of the chunk that ``act`` returns; 0 = a single action [B, A].
        state_keys: vector keys read (``observation.state`` ...).
        image_keys: camera feature keys read; () = blind.
        language: whether ``task`` changes what it does.
        rate_hz: control rate its actions are meant for; None = any.
    """

    action_dim: int
    chunk_length: int = 0
    state_keys: tuple[str, ...] = ("observation.state",)
    image_keys: tuple[str, ...] = ()
    language: bool = False
    rate_hz: float | None = None


@runtime_checkable
class Policy(Protocol):
    """Anything that acts: a VLA, a residual on it, a scripted expert, a person."""

    spec: PolicySpec

    def initial_state(self, batch_size: int) -> TensorDict:
        """State of ``batch_size`` episodes about to begin; every leaf is [B, ...]."""
        ...

    def needs_images(self, state: TensorDict) -> Tensor:
        """Bool [B]: the rows whose cameras must be rendered before the next ``act``."""
        ...

    def act(
        self, observation: Observation, state: TensorDict, *, deterministic: bool = False
    ) -> tuple[TensorDict, TensorDict]:
        """One decision for B rows.

        Args:
            observation: ``state_keys`` [B, ...]; ``image_keys`` [B, 3, H, W] uint8, of which only the rows
                that ``needs_images`` named may be read (the others hold zeros); ``task``: B strings.
            state: from ``initial_state`` or the last ``act``. Never changed in place.
            deterministic: no exploration.

        Returns:
            ``{"action": [B, A] or [B, T, A] in the environment's units, ...}`` and the next state. Wrappers
            add ``base_action`` [B, A], samplers ``log_prob``, ``noise``, ``tokens``.
        """
        ...


def merge_rows(mask: Tensor, new: TensorDict, old: TensorDict) -> TensorDict:
    """Rows of ``new`` where ``mask`` [B] is true, rows of ``old`` elsewhere, leaf by leaf."""

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask.view(-1, *([1] * (a.dim() - 1))), a, b)

    return new.apply(pick, old)


def reset_rows(policy: Policy, state: TensorDict, mask: Tensor) -> TensorDict:
    """``state`` with the rows of ``mask`` [B] begun anew; no other row is touched."""
    return merge_rows(mask, policy.initial_state(mask.shape[0]), state)


def pictured(
    observation: Observation,
    keys: Sequence[str],
    images: Mapping[str, Tensor],
    rows: Sequence[int] | Tensor,
    spec: EnvSpec,
    count: int,
) -> Observation:
    """``observation`` of ``count`` rows with the cameras ``keys``: ``images`` [k, 3, H, W] in the k ``rows``, zeros elsewhere."""
    seen = dict(observation)
    for key in keys:
        seen[key] = torch.zeros(count, 3, *spec.cameras[key], dtype=torch.uint8)
        if len(rows):
            seen[key][rows] = images[key].cpu()
    return seen


def check_compatible(policy: PolicySpec, env: EnvSpec) -> None:
    """Refuse a policy that cannot run in an environment, before anything slow starts.

    Raises:
        UserError: action dimension, camera or state key missing, each named with the remedy.
    """
    if policy.action_dim != env.action_dim:
        raise UserError(
            f"policy gives {policy.action_dim}-dimensional actions, environment {env.id} takes {env.action_dim}: "
            "choose another env control mode or a policy trained for it"
        )
    for key in policy.image_keys:
        if key not in env.cameras:
            have = ", ".join(env.cameras) or "none"
            raise UserError(f"policy needs camera {key}; environment {env.id} has {have}: set env.cameras")
    if "observation.environment_state" in policy.state_keys and not env.env_state_dim:
        raise UserError(f"policy needs observation.environment_state, which {env.id} does not have")
