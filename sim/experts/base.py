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

ASIDE = 2**31
"""A step that no episode reaches: its draw is the episode's displacement."""


class Expert:
    """A scripted expert as a ``vla_rl.policies.base.Policy``; subclasses write ``command``.

    Args:
        spec: of the environment it acts in.
        noise: std of the disturbance added to each action, as a fraction of half the action's range.
        correlation: of the disturbance from one step to the next (0 = white; 0.7 wanders as a person does).
        noisy_dims: how many leading action dimensions are disturbed; None = all.
        miss: standard deviation, in metres, of how far beside its hand an expert believes it to be, another way in every
            episode: it goes through the motions and often fails, which teaches a critic to look at the things and not at
            the arm.

    Raises:
        UserError: ``miss`` of an expert that does not look for its ``hand``, or a negative one.
    """

    hand: tuple[tuple[str, int], ...] = ()
    """Where the hand's position [3] begins in an observation: (key, index); () = such an expert cannot miss."""

    def __init__(
        self,
        spec: EnvSpec,
        noise: float = 0.0,
        correlation: float = 0.7,
        noisy_dims: int | None = None,
        miss: float = 0.0,
    ) -> None:
        if miss < 0 or (miss and not self.hand):
            raise UserError(f"policy.miss={miss}: 0 or more, and 0 for {type(self).__name__}")
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
        """The command, disturbed and beside the hand unless ``deterministic``, inside the action box.

        The disturbance follows from torch's seed and the episode's first observation, so that an episode is the
        same whichever row of whichever batch it is played in.
        """
        disturbance, key = state["disturbance"], state["key"]
        if (self.noise or self.miss) and not deterministic:
            key = torch.where(key == 0, keys_of(observation), key)
            observation = self._believed(observation, key)
        action = self.command(observation)
        size = [len(action)]
        if self.noise and not deterministic:
            fresh = normal(key, state["step"], self.spec.action_dim) * self.mask
            rho = self.correlation
            disturbance = rho * disturbance + (1 - rho**2) ** 0.5 * fresh
            action = action + self.noise * (self.high - self.low) / 2 * disturbance
        action = torch.maximum(torch.minimum(action, self.high), self.low)
        after = {"disturbance": disturbance, "key": key, "step": state["step"] + 1}
        return TensorDict({"action": action}, size), TensorDict(after, size)

    def _believed(self, observation: Observation, key: Tensor) -> Observation:
        """``observation`` with the hand where it is believed to be."""
        if not self.miss:
            return observation
        aside = self.miss * normal(key, torch.full_like(key, ASIDE), 3)
        believed = dict(observation)
        for name in dict(self.hand):
            believed[name] = observation[name].clone()
        for name, first in self.hand:
            believed[name][:, first : first + 3] += aside
        return believed


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
