"""A policy that a person (or a script) may take over at any step: HG-DAgger's and HIL-SERL's interventions."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.policies.base import Observation, Policy, merge_rows


@runtime_checkable
class Teleoperator(Protocol):
    """Who may take over. Actions are relative, so that taking over with a device at rest moves nothing."""

    state_keys: tuple[str, ...]
    """Vector keys it reads; () = none (a person has eyes)."""

    def initial_state(self, batch_size: int) -> TensorDict:
        """State of ``batch_size`` episodes about to begin; a device has none."""
        ...

    def command(self, observation: Observation, state: TensorDict) -> tuple[Tensor, Tensor, TensorDict]:
        """``action`` [B, A] in the environment's units, ``engaged`` bool [B] (the dead-man button), next state."""
        ...


class Intervened:
    """``policy`` acts unless ``teleoperator`` is engaged; then its action is executed, and told apart.

    State: ``policy``, ``teleoperator``, ``engaged`` bool [B]. While engaged the policy is still asked, so that ``base_action`` is what
    the base would have done. At hand-back its state begins anew: a chunk planned before the person moved the arm is
    not played out afterwards.

    Args:
        policy: gives single actions.
        teleoperator: who takes over.

    Raises:
        UserError: a policy that gives chunks.
    """

    def __init__(self, policy: Policy, teleoperator: Teleoperator) -> None:
        if policy.spec.chunk_length:
            raise UserError(
                "an intervention replaces single actions: set policy.horizon, which plays chunks step by step"
            )
        self.policy, self.teleoperator = policy, teleoperator
        keys = tuple(dict.fromkeys(policy.spec.state_keys + teleoperator.state_keys))
        self.spec = replace(policy.spec, state_keys=keys)

    def initial_state(self, batch_size: int) -> TensorDict:
        """Nobody is engaged."""
        parts = {
            "policy": self.policy.initial_state(batch_size),
            "teleoperator": self.teleoperator.initial_state(batch_size),
            "engaged": torch.zeros(batch_size, dtype=torch.bool),
        }
        return TensorDict(parts, batch_size=[batch_size])

    def needs_images(self, state: TensorDict) -> Tensor:
        """As the policy; all rows that were engaged, which may be handed back now."""
        wanted = self.policy.needs_images(state["policy"])
        return wanted | state["engaged"] if self.spec.image_keys else wanted

    def act(
        self, observation: Observation, state: TensorDict, *, deterministic: bool = False
    ) -> tuple[TensorDict, TensorDict]:
        """The policy's output with ``action`` [B, A] as executed and ``intervention`` bool [B]."""
        taken, engaged, operated = self.teleoperator.command(observation, state["teleoperator"])
        inner = state["policy"]
        handed_back = state["engaged"] & ~engaged
        if handed_back.any():
            inner = merge_rows(handed_back, self.policy.initial_state(len(engaged)), inner)
        output, after = self.policy.act(observation, inner, deterministic=deterministic)
        executed = {
            "action": torch.where(engaged[:, None], taken, output["action"]),
            "base_action": _base(output),
            "intervention": engaged,
        }
        parts = {"policy": after, "teleoperator": operated, "engaged": engaged}
        size = [len(engaged)]
        return TensorDict(executed, batch_size=size), TensorDict(parts, batch_size=size)


def _base(output: TensorDict) -> Tensor:
    """[B, N, A]: candidates of a residual or open-loop policy; a policy without a base is its own."""
    for key in ("base_action", "base_candidates"):
        if key in output:
            return output[key] if output[key].dim() == 3 else output[key].unsqueeze(1)
    return output["action"].unsqueeze(1)


class Overseer:
    """A scripted teleoperator: takes over when an episode has not succeeded in time, for a while.

    What a patient person does (HIL-SERL's advice: let it explore, then help), made repeatable.

    Args:
        expert: acts while engaged.
        spec: of the environment.
        patience: control steps that the policy has first.
        hold: control steps it then stays engaged; None = to the end.
        share: share of the episodes it watches at all (drawn from torch's global generator).
    """

    def __init__(
        self,
        expert: Policy,
        spec: EnvSpec,
        patience: int,
        hold: int | None = None,
        share: float = 1.0,
    ) -> None:
        if patience < 0 or patience >= spec.max_episode_steps:
            raise UserError(
                f"patience={patience} must lie in 0..{spec.max_episode_steps - 1}, within an episode of {spec.id}"
            )
        if not 0 <= share <= 1:
            raise UserError(f"share={share} must lie in [0, 1]")
        self.expert, self.patience, self.share = expert, patience, share
        self.hold = spec.max_episode_steps if hold is None else hold
        self.state_keys = expert.spec.state_keys

    def initial_state(self, batch_size: int) -> TensorDict:
        """``step``, whether the episode is ``watched``, and the expert's state."""
        parts = {
            "step": torch.zeros(batch_size, dtype=torch.long),
            "watched": torch.rand(batch_size) < self.share,
            "expert": self.expert.initial_state(batch_size),
        }
        return TensorDict(parts, batch_size=[batch_size])

    def command(self, observation: Observation, state: TensorDict) -> tuple[Tensor, Tensor, TensorDict]:
        """The expert's action, engaged from step ``patience`` to ``patience + hold``."""
        output, expert = self.expert.act(observation, state["expert"], deterministic=True)
        step = state["step"]
        engaged = state["watched"] & (step >= self.patience) & (step < self.patience + self.hold)
        parts = {"step": step + 1, "watched": state["watched"], "expert": expert}
        return output["action"], engaged, TensorDict(parts, batch_size=[len(step)])
