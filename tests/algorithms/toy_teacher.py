"""A teacher for the toy that only acts."""

from __future__ import annotations

import torch
from tensordict import TensorDict

from vla_rl.keys import ENV_STATE, STATE
from vla_rl.policies.base import PolicySpec


class Teacher:
    """Goes to the goal; ``length`` steps at once, or one (0)."""

    def __init__(self, length: int = 4, noise: float = 0.0, images: bool = False, gain: float = 2.0) -> None:
        self.spec = PolicySpec(
            2, length, state_keys=(STATE, ENV_STATE), image_keys=("eye",) if images else ()
        )
        self.noise, self.gain, self.asked = noise, gain, []

    def initial_state(self, batch_size):
        return TensorDict({}, [batch_size])

    def needs_images(self, state):
        return torch.full((state.batch_size[0],), bool(self.spec.image_keys))

    def act(self, observation, state, *, deterministic=False):
        self.asked.append(len(observation[STATE]))
        wanted = self.gain * (observation[ENV_STATE] - observation[STATE][:, :2])
        if not deterministic:
            wanted = wanted + self.noise * torch.randn_like(wanted)
        action = wanted.clamp(-1, 1)
        if self.spec.chunk_length:
            action = action[:, None].expand(-1, self.spec.chunk_length, -1)
        return TensorDict({"action": action}, [len(action)]), state
