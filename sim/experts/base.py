"""What scripted experts share: the policy contract without memory, and tunable noise."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE
from vla_rl.policies.base import Observation, PolicySpec


class Expert:
    """A scripted expert as a ``vla_rl.policies.base.Policy``; subclasses write ``command``.

    Args:
        spec: of the environment it acts in.
        noise: std of the disturbance added to each action, as a fraction of half the action's range.
        correlation: of the disturbance from one step to the next (0 = white; 0.7 wanders as a person does).
        noisy_dims: how many leading action dimensions are disturbed; None = all.
        miss: standard deviation, in metres, of how far beside its hand an expert that ``can_miss`` believes it to be, another way in
            every episode: it goes through the motions and often fails, which teaches a critic to look at the things and not
            at the arm.

    Raises:
        UserError: ``miss`` of an expert that cannot, or a negative one.
    """

    can_miss = False

    def __init__(
        self,
        spec: EnvSpec,
        noise: float = 0.0,
        correlation: float = 0.7,
        noisy_dims: int | None = None,
        miss: float = 0.0,
    ) -> None:
        if miss < 0 or (miss and not self.can_miss):
            raise UserError(f"policy.miss={miss}: 0 or more, and above 0 for Meta-World's experts only")
        self.miss = miss
        self.env_spec, self.noise, self.correlation = spec, noise, correlation
        self.low, self.high = torch.tensor(spec.action_low), torch.tensor(spec.action_high)
        self.mask = torch.ones(spec.action_dim)
        if noisy_dims is not None:
            self.mask[noisy_dims:] = 0
        self.spec = PolicySpec(action_dim=spec.action_dim, state_keys=(STATE, ENV_STATE), language=True)

    def initial_state(self, batch_size: int) -> TensorDict:
        """The running disturbance [B, A], its key [B] (0 = not drawn yet) and the number of steps taken [B]."""
        return TensorDict(
            {
                "disturbance": torch.zeros(batch_size, self.spec.action_dim),
                "key": torch.zeros(batch_size, dtype=torch.int64),
                "step": torch.zeros(batch_size, dtype=torch.int64),
            },
            batch_size=[batch_size],
        )

    def needs_images(self, state: TensorDict) -> Tensor:
        """Never: experts read the simulator's state."""
        return torch.zeros(state.batch_size[0], dtype=torch.bool)

    def command(self, observation: Observation) -> Tensor:
        """The undisturbed action [B, A], environment units."""
        raise NotImplementedError

    def act(
        self, observation: Observation, state: TensorDict, *, deterministic: bool = False
    ) -> tuple[TensorDict, TensorDict]:
        """The command, disturbed unless ``deterministic``, inside the action box.

        The disturbance follows from torch's seed and the episode's first observation, so that an episode is the
        same whichever row of whichever batch it is played in.
        """
        action = self.command(observation)
        size = [len(action)]
        disturbance, key = state["disturbance"], state["key"]
        if self.noise and not deterministic:
            key = torch.where(key == 0, keys_of(observation), key)
            fresh = normal(key, state["step"], self.spec.action_dim) * self.mask
            rho = self.correlation
            disturbance = rho * disturbance + (1 - rho**2) ** 0.5 * fresh
            action = action + self.noise * (self.high - self.low) / 2 * disturbance
        action = torch.maximum(torch.minimum(action, self.high), self.low)
        after = {"disturbance": disturbance, "key": key, "step": state["step"] + 1}
        return TensorDict({"action": action}, size), TensorDict(after, size)


def keys_of(observation: Observation) -> Tensor:
    """A positive int64 per row [B] that follows from torch's seed and the row's observation."""
    seed = torch.initial_seed() & 0xFFFFFFFF
    rows = torch.cat([observation[STATE], observation[ENV_STATE]], dim=-1).numpy()
    return torch.tensor([zlib.crc32(row.tobytes(), seed) + 1 for row in rows])


def normal(key: Tensor, step: Tensor, dim: int) -> Tensor:
    """Standard normal [B, dim], a function of each row's ``key`` and ``step`` [B]."""
    draws = [
        np.random.default_rng([k, s]).standard_normal(dim, np.float32)
        for k, s in zip(key.tolist(), step.tolist(), strict=True)
    ]
    return torch.from_numpy(np.stack(draws))
