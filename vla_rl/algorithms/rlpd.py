"""RLPD (arXiv 2302.02948) as a baseline: the same learner and the same demonstrations, but no base policy.

Half of every batch is demonstrations, critics carry layer norm, the target is the minimum of a random pair out of an
ensemble: these are RLPD's own, and ``ResidualTD3`` has them. What differs from residual RL is that actions come from
the actor alone, over the whole action box; what differs from the paper is TD3's deterministic actor in place of
SAC's, so that the comparison is about the base and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.algorithms.residual_td3 import ResidualTD3, ResidualTD3Config
from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.keys import STATE
from vla_rl.policies.base import Observation, PolicySpec


class Centre:
    """The policy that knows nothing: the middle of the action box, always.

    Args:
        spec: of the environment.
    """

    def __init__(self, spec: EnvSpec) -> None:
        low, high = torch.tensor(spec.action_low), torch.tensor(spec.action_high)
        self.action = (low + high) / 2
        self.spec = PolicySpec(action_dim=spec.action_dim, state_keys=(STATE,))

    def initial_state(self, batch_size: int) -> TensorDict:
        """Nothing to remember [B, 1]."""
        return TensorDict({"nothing": torch.zeros(batch_size, 1)}, batch_size=[batch_size])

    def needs_images(self, state: TensorDict) -> Tensor:
        """Never."""
        return torch.zeros(state.batch_size[0], dtype=torch.bool)

    def act(
        self, observation: Observation, state: TensorDict, *, deterministic: bool = False
    ) -> tuple[TensorDict, TensorDict]:
        """The same action [B, A] in every row."""
        count = state.batch_size[0]
        return TensorDict({"action": self.action.repeat(count, 1)}, batch_size=[count]), state


@dataclass
class RLPDConfig(ResidualTD3Config):
    """``ResidualTD3Config``; the defaults that only make sense with a base are replaced.

    ``scale``, ``candidates`` and ``gate`` are fixed: the actor spans the whole box and nothing competes with it.
    """

    scale: float = 1.0
    gate: bool = False
    warmup_noise: float = 1.0
    action_penalty: float = 0.0

    def check(self) -> None:
        """Refuse settings that need a base.

        Raises:
            UserError: naming the setting.
        """
        fixed = {"scale": 1.0, "candidates": 1, "gate": False}
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise UserError(
                    f"algorithm.{name}={getattr(self, name)}: RLPD has no base, leave it at {value}"
                )
        super().check()


class RLPD(ResidualTD3):
    """See the module's docstring; arguments as ``ResidualTD3`` without ``base``."""

    def __init__(
        self, config: RLPDConfig, env_spec: EnvSpec, num_envs: int, device: str | torch.device = "cpu"
    ) -> None:
        super().__init__(config, Centre(env_spec), env_spec, num_envs, device)
