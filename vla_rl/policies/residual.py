"""A bounded per-step correction on top of a frozen, chunked base policy (ResFiT, arXiv 2509.19301, eq. 1).

a = clip(a_base + scale * half_range * tanh(actor(s, a_base))), with the actor's last layer zero at first: a
fresh residual *is* the base. With N candidates from the base the critic chooses (EXPO, arXiv 2507.07986).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.policies.base import Observation, Policy, PolicySpec

Value = Callable[[Tensor, Tensor], Tensor]
"""(features [B, F], normalised actions [B, N, A]) -> value [B, N]."""


class ActionBox(nn.Module):
    """Actions between environment units and [-1, 1] of the environment's box."""

    low: Tensor
    high: Tensor

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        low, high = torch.tensor(spec.action_low), torch.tensor(spec.action_high)
        if not torch.isfinite(low).all() or not torch.isfinite(high).all():
            raise UserError(f"environment {spec.id} has unbounded actions: residual RL needs action_low and action_high")
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.half = (high - low) / 2
        self.centre = (high + low) / 2

    def normalize(self, action: Tensor) -> Tensor:
        """Environment units -> [-1, 1]."""
        return (action - self.centre) / self.half

    def clip(self, action: Tensor) -> Tensor:
        """Into the environment's box, in its units."""
        return torch.maximum(torch.minimum(action, self.high), self.low)


class Residual:
    """Acts with base + residual.

    Args:
        base: gives one action per step (``OpenLoop``), with ``base_candidates`` [B, N, A] when N > 1.
        box: the environment's action box.
        features: observation -> [B, F] float32, what actor and critic see.
        actor: (features [B, F], normalised base actions [B, N, A]) -> correction in (-1, 1) [B, N, A].
        scale: bound of the correction per action dimension, as a fraction of half the range [A].
        value: critic's estimate used to choose; needed when N > 1 or ``gate``.
        gate: the unedited base competes too: an edit is executed only where the critic prefers it.
        noise: std of exploration noise, in fractions of half the range, added to every dimension.
    """

    def __init__(
        self,
        base: Policy,
        box: ActionBox,
        features: Callable[[Observation], Tensor],
        actor: Callable[[Tensor, Tensor], Tensor],
        scale: Tensor,
        *,
        value: Value | None = None,
        gate: bool = False,
        noise: float = 0.0,
    ) -> None:
        self.base, self.box, self.features, self.actor = base, box, features, actor
        self.scale, self.value, self.gate, self.noise = scale, value, gate, noise
        self.enabled = True
        """False: the base alone acts (warm-up), still with exploration noise."""
        self.probability = 1.0
        """Share of decisions the residual takes part in (Policy Decorator's ramp)."""
        self.spec: PolicySpec = base.spec

    def initial_state(self, batch_size: int) -> TensorDict:
        """The base's state."""
        return self.base.initial_state(batch_size)

    def needs_images(self, state: TensorDict) -> Tensor:
        """As the base: the residual runs on vectors."""
        return self.base.needs_images(state)

    @torch.no_grad()
    def act(
        self, observation: Observation, state: TensorDict, *, deterministic: bool = False
    ) -> tuple[TensorDict, TensorDict]:
        """``action`` [B, A] and ``base_action`` [B, N, A], environment units."""
        output, state = self.base.act(observation, state, deterministic=deterministic)
        base = output.get("base_candidates", output["action"].unsqueeze(-2))
        action = base[:, 0]
        if self.enabled:
            chosen = self.choose(self.features(observation), base)
            if not deterministic and self.probability < 1:
                use = torch.rand(len(action), 1) < self.probability
                chosen = torch.where(use, chosen, action)
            action = chosen
        if not deterministic and self.noise:
            action = action + self.box.half * self.noise * torch.randn_like(action).clamp(-2, 2)
        action = self.box.clip(action)
        return TensorDict({"action": action, "base_action": base}, batch_size=[len(action)]), state

    def edits(self, features: Tensor, base: Tensor) -> Tensor:
        """Every candidate [B, N, A] with its correction, clipped, environment units."""
        correction = self.actor(features, self.box.normalize(base))
        return self.box.clip(base + self.box.half * self.scale * correction)

    def choose(self, features: Tensor, base: Tensor) -> Tensor:
        """The action [B, A] among edited (and, with ``gate``, unedited) candidates that the critic likes best."""
        return select(features, base, self.edits(features, base), self.box, self.value, self.gate)


def select(features: Tensor, base: Tensor, edited: Tensor, box: ActionBox, value: Value | None, gate: bool) -> Tensor:
    """The critic's choice [B, A] among ``edited`` and, with ``gate``, ``base`` [B, N, A]."""
    options = torch.cat([edited, box.clip(base)], dim=1) if gate else edited
    if options.shape[1] == 1:
        return options[:, 0]
    if value is None:
        raise UserError("several base candidates need a critic to choose: algorithm.candidates=1 or give value")
    best = value(features, box.normalize(options)).argmax(dim=1)
    return options[torch.arange(len(options)), best]
