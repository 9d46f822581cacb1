"""Meta-World's own scripted experts for all fifty tasks, batched over rows."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from sim.experts.base import Expert, keys_of, normal
from sim.metaworld import INSTRUCTIONS
from vla_rl.environment import VlaVectorEnv
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, TASK
from vla_rl.policies.base import Observation

HAND = (0, 18)
"""Where the hand's position begins in Meta-World's observation: now, and one step ago."""

ASIDE = 2**31
"""A step that no episode reaches: its draw is the episode's displacement."""


class MetaWorldExpert(Expert):
    """The scripted expert of one task, or of several told apart by their instruction.

    Args:
        env: the environment it is to act in.
        **settings: of ``Expert``; noise leaves the gripper alone by default.

    Raises:
        UserError: not a Meta-World environment.
    """

    can_miss = True

    def __init__(self, env: VlaVectorEnv, **settings: Any) -> None:
        super().__init__(env.env_spec, **({"noisy_dims": 3} | settings))
        from metaworld.policies import ENV_POLICY_MAP

        self.scripts: dict[str, Any] = {}
        for id in dict.fromkeys(env.own_task_ids()):
            if id not in INSTRUCTIONS:
                raise UserError(f"no Meta-World expert for {id}: it knows MT50, e.g. reach-v3")
            self.scripts[INSTRUCTIONS[id]] = ENV_POLICY_MAP[id]()

    def act(
        self, observation: Observation, state: TensorDict, *, deterministic: bool = False
    ) -> tuple[TensorDict, TensorDict]:
        """As ``Expert``, with the hand where it is believed to be."""
        if not self.miss or deterministic:
            return super().act(observation, state, deterministic=deterministic)
        key = torch.where(state["key"] == 0, keys_of(observation), state["key"])
        believed = observation[ENV_STATE].clone()
        aside = self.miss * normal(key, torch.full_like(key, ASIDE), 3)
        for first in HAND:
            believed[:, first : first + 3] += aside
        state = state.clone()
        state["key"] = key
        return super().act({**observation, ENV_STATE: believed}, state)

    def command(self, observation: Observation) -> Tensor:
        """[B, 4] in -1 ... 1; the scripts are functions of one observation."""
        states = observation[ENV_STATE].numpy().astype(np.float64)
        actions = np.zeros((len(states), self.spec.action_dim))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "constants may be too high": they are, and are clipped
            for row, (task, state) in enumerate(zip(observation[TASK], states, strict=True)):
                actions[row] = self.scripts[task].get_action(state)
        # Clipped before the disturbance, which would otherwise be lost behind commands far outside the box.
        return torch.from_numpy(np.clip(actions, -1.0, 1.0).astype(np.float32))
