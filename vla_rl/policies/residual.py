"""A bounded per-step correction on top of a frozen, chunked base policy (ResFiT, arXiv 2509.19301, eq. 1).

a = clip(a_base + scale * half_range * tanh(actor(s, a_base))), with the actor's last layer zero at first: a
fresh residual *is* the base. With N candidates from the base the critic chooses (EXPO, arXiv 2507.07986); with
``gate`` the unedited base always competes, so that only corrections the critics agree on are executed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.keys import IMAGES, INSTRUCTION
from vla_rl.policies.base import Observation, Policy, PolicySpec

Value = Callable[[Tensor, Tensor], Tensor]
"""(features [B, F], normalised actions [B, M, A]) -> values [E, B, M] of E critics."""


class ActionBox:
    """Actions between environment units and [-1, 1] of the environment's box.

    Raises:
        UserError: unbounded or empty bounds.
    """

    def __init__(self, spec: EnvSpec, device: str | torch.device = "cpu") -> None:
        self.low = torch.tensor(spec.action_low, dtype=torch.float32, device=device)
        self.high = torch.tensor(spec.action_high, dtype=torch.float32, device=device)
        if not (torch.isfinite(self.low) & torch.isfinite(self.high) & (self.low < self.high)).all():
            raise UserError(
                f"environment {spec.id} has unbounded or empty action bounds: residual RL needs finite "
                "action_low < action_high"
            )
        self.half = (self.high - self.low) / 2
        self.centre = (self.high + self.low) / 2

    def normalize(self, action: Tensor) -> Tensor:
        """Environment units -> [-1, 1]."""
        return (action - self.centre) / self.half

    def clip(self, action: Tensor) -> Tensor:
        """Into the environment's box, in its units."""
        return torch.maximum(torch.minimum(action, self.high), self.low)


def action_scale(scale: float | Sequence[float], spec: EnvSpec, gripper: float | None = None) -> Tensor:
    """[A] bound of the correction as a fraction of half the range.

    Args:
        scale: one number, or one per dimension.
        spec: the environment's action dimensions and their names.
        gripper: bound of the dimensions named ``gripper`` when ``scale`` is one number; None = as the others.

    Raises:
        UserError: wrong length, or outside [0, 2] (2 spans the whole box).
    """
    actions = spec.action_dim
    values = torch.as_tensor(scale, dtype=torch.float32)
    if values.dim() > 1 or (values.dim() == 1 and len(values) not in (1, actions)):
        raise UserError(
            f"algorithm.scale has {values.numel()} entries for {actions} action dimensions: give one number "
            "or one for each dimension"
        )
    single = values.numel() == 1
    values = values.expand(actions).clone()
    if single and gripper is not None:
        values[[i for i, name in enumerate(spec.action_names) if name == "gripper"]] = gripper
    if not ((values >= 0) & (values <= 2)).all():
        raise UserError(
            f"algorithm.scale={scale}, gripper_scale={gripper}: outside [0, 2]; they are fractions of half the "
            "action range"
        )
    return values


class Residual:
    """Acts with base + residual.

    Args:
        base: gives one action per step (``OpenLoop``), with ``base_candidates`` [B, N, A] when N > 1.
        box: the environment's action box.
        features: observation -> [B, F] float32, what actor and critic see.
        actor: (features [B, F], normalised base actions [B, N, A]) -> correction in (-1, 1) [B, N, A].
        scale: bound of the correction per action dimension, as a fraction of half the range [A]; dimensions
            with 0 get no exploration noise either (a gripper).
        value: critics' estimates used to choose; needed when N > 1 or ``gate``.
        gate: the unedited base competes too: an edit is executed only where the critics prefer it.
        margin: how many standard deviations (over the critics) of the *difference* to the base are taken off
            before choosing; only with ``gate``.
        observation_keys: what ``features`` reads; cameras among them are rendered at every step.
        generator: source of all exploration; None = torch's global one.
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
        margin: float = 0.0,
        observation_keys: Sequence[str] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        self.base, self.box, self.features, self.actor = base, box, features, actor
        self.scale, self.value, self.gate, self.margin = scale, value, gate, margin
        self.image_keys = tuple(k for k in observation_keys if k.startswith(IMAGES))
        self.generator = generator
        self.explored = (scale > 0).float()
        self.enabled = True
        """False: the base alone acts (warm-up), still with exploration noise."""
        self.probability = 1.0
        """Share of decisions the residual takes part in (Policy Decorator's ramp)."""
        self.noise = 0.0
        """Std of Gaussian exploration noise, clipped at two, as a fraction of half the range."""
        self.uniform_noise = 0.0
        """Half-width of uniform exploration noise, same unit."""
        self.correlation = 0.0
        """Of the noise with that of the step before; its std stays."""
        vectors = [k for k in observation_keys if k not in self.image_keys and k != INSTRUCTION]
        self.spec: PolicySpec = replace(
            base.spec,
            chunk_length=0,
            language=base.spec.language or INSTRUCTION in observation_keys,
            state_keys=tuple(dict.fromkeys([*base.spec.state_keys, *vectors])),
            image_keys=tuple(dict.fromkeys([*base.spec.image_keys, *self.image_keys])),
        )

    def initial_state(self, batch_size: int) -> TensorDict:
        """The base's state, nested under ``base``, and the last exploration ``noise`` [B, A]."""
        noise = torch.zeros(batch_size, len(self.scale))
        return TensorDict(
            {"base": self.base.initial_state(batch_size), "noise": noise}, batch_size=[batch_size]
        )

    def needs_images(self, state: TensorDict) -> Tensor:
        """As the base, or every row when the residual itself sees images."""
        if self.image_keys:
            return torch.ones(state.batch_size[0], dtype=torch.bool)
        return self.base.needs_images(state["base"])

    @torch.no_grad()
    def act(
        self, observation: Observation, state: TensorDict, *, deterministic: bool = False
    ) -> tuple[TensorDict, TensorDict]:
        """``action`` [B, A] and ``base_action`` [B, N, A], environment units."""
        output, base_state = self.base.act(observation, state["base"], deterministic=deterministic)
        single = output["action"]
        base = output.get("base_candidates", single.unsqueeze(-2))
        action = base[:, 0]
        if self.enabled:
            device = self.scale.device
            chosen = self.choose(self.features(observation), base.to(device)).to(base.device)
            if not deterministic and self.probability < 1:
                use = torch.rand(len(action), 1, generator=self.generator) < self.probability
                chosen = torch.where(use, chosen, action)
            action = chosen
        noise = state["noise"]
        if not deterministic and (self.noise or self.uniform_noise):
            noise = self.drawn_noise(noise)
            action = action + (self.box.half * self.explored).to(action.device) * noise.to(action.device)
        action = self.box_clip(action)
        size = [len(action)]
        return (
            TensorDict({"action": action, "base_action": base}, batch_size=size),
            TensorDict({"base": base_state, "noise": noise}, batch_size=size),
        )

    def drawn_noise(self, before: Tensor) -> Tensor:
        """Exploration noise [B, A] after the last step's, as a fraction of half the range: AR(1), begun at zero."""
        shape = before.shape
        noise = torch.zeros(shape)
        if self.noise:
            noise = torch.randn(shape, generator=self.generator).clamp(-2, 2) * self.noise
        if self.uniform_noise:
            noise = noise + (torch.rand(shape, generator=self.generator) * 2 - 1) * self.uniform_noise
        if not self.correlation:
            return noise
        return self.correlation * before + (1 - self.correlation**2) ** 0.5 * noise

    def box_clip(self, action: Tensor) -> Tensor:
        """``action`` inside the environment's box, wherever it lives."""
        return torch.maximum(
            torch.minimum(action, self.box.high.to(action.device)), self.box.low.to(action.device)
        )

    def edits(self, features: Tensor, base: Tensor) -> Tensor:
        """Every candidate [B, N, A] with its correction, clipped, environment units."""
        correction = self.actor(features, self.box.normalize(base))
        return self.box.clip(base + self.box.half * self.scale * correction)

    def choose(self, features: Tensor, base: Tensor) -> Tensor:
        """The action [B, A] among edited (and, with ``gate``, unedited) candidates that the critics like best."""
        edited = self.edits(features, base)
        if edited.shape[1] == 1 and not self.gate:
            return edited[:, 0]
        if self.value is None:
            raise UserError(
                "several base candidates or a gate need a critic: set algorithm.candidates=1, gate=false"
            )
        options = torch.cat([self.box.clip(base), edited], dim=1) if self.gate else edited
        values = self.value(features, self.box.normalize(options))
        best = preference(values, self.margin if self.gate else 0.0).argmax(dim=1)
        return options[torch.arange(len(options), device=best.device), best]


def preference(values: Tensor, margin: float) -> Tensor:
    """Score [B, M] of M options from E critics' ``values`` [E, B, M]; option 0 is the plain base.

    With a margin: mean - margin * std of each critic's own difference to the base. Critics disagree about the
    value of a state far more than about which action is better in it, so differences are compared, not values.
    """
    if not margin or values.shape[0] == 1:
        return values.mean(0)
    gain = values - values[..., :1]
    return gain.mean(0) - margin * gain.std(0)
