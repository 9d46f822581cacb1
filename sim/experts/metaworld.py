"""Meta-World's own scripted experts for all fifty tasks, batched over rows."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sim.experts.base import Expert
from sim.metaworld import INSTRUCTIONS
from vla_rl.environment import VlaVectorEnv
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, TASK
from vla_rl.policies.base import Observation


class MetaWorldExpert(Expert):
    """The scripted expert of one task, or of several told apart by their instruction.

    Args:
        env: the environment it is to act in.
        **settings: of ``Expert``; noise leaves the gripper alone by default.

    Raises:
        UserError: not a Meta-World environment.
    """

    hand = ((ENV_STATE, 0), (ENV_STATE, 18))  # now, and one step ago

    def __init__(self, env: VlaVectorEnv, **settings: Any) -> None:
        super().__init__(env.env_spec, **({"noisy_dims": 3} | settings))
        from metaworld.policies import ENV_POLICY_MAP

        self.scripts: dict[str, Any] = {}
        for id in dict.fromkeys(env.own_task_ids()):
            if id not in INSTRUCTIONS:
                raise UserError(f"no Meta-World expert for {id}: it knows MT50, e.g. reach-v3")
            self.scripts[INSTRUCTIONS[id]] = ENV_POLICY_MAP[id]()

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
