"""A small environment with images, and its expert, for the data tests: a point moves to a goal."""

from __future__ import annotations

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.environment import EnvSpec, VlaVectorEnv, checked_action, row_mask, row_seeds, row_starts
from vla_rl.keys import ENV_STATE, STATE
from vla_rl.policies.base import PolicySpec

CAMERA = "observation.images.top"


class Reach(VlaVectorEnv):
    """state [2] = position, environment_state [2] = goal; success within 0.08; 25 steps; 32 px image."""

    def __init__(self, num_envs: int, steps: int = 25, rate_hz: float = 20.0) -> None:
        spec = EnvSpec(
            id="Reach",
            state_dim=2,
            env_state_dim=2,
            action_low=(-0.1, -0.1),
            action_high=(0.1, 0.1),
            cameras={CAMERA: (32, 32)},
            tasks=("go left", "go right"),
            max_episode_steps=steps,
            rate_hz=rate_hz,
            state_names=("x", "y"),
        )
        self.set_spaces(spec, num_envs)
        self.position, self.goal = torch.zeros(num_envs, 2), torch.zeros(num_envs, 2)
        self.steps = torch.zeros(num_envs, dtype=torch.int64)
        self.over = torch.ones(num_envs, dtype=torch.bool)
        self.looked = 0

    def _observation(self) -> dict:
        tasks = ["go left" if g < 0 else "go right" for g in self.goal[:, 0].tolist()]
        return {STATE: self.position, ENV_STATE: self.goal, "task": tasks}  # views, as shared memory is

    def reset(self, *, seed=None, options=None):
        mask = row_mask(options, self.num_envs)
        for row, s in enumerate(row_seeds(seed, self.num_envs)):
            if mask[row]:
                rng = np.random.default_rng(s)
                self.position[row] = torch.tensor(rng.uniform(-1, 1, 2), dtype=torch.float32)
                self.goal[row] = torch.tensor(rng.uniform(-1, 1, 2), dtype=torch.float32)
                self.steps[row], self.over[row] = 0, False
        return self._observation(), {}

    def step(self, actions):
        if self.over.any():
            raise RuntimeError("reset finished rows first")
        action = checked_action(actions, self.env_spec, self.num_envs)
        assert (action.abs() <= 0.1 + 1e-6).all()
        self.position += action
        self.steps += 1
        success = (self.position - self.goal).norm(dim=1) < 0.08
        truncated = ~success & (self.steps >= self.env_spec.max_episode_steps)
        self.over = success | truncated
        return self._observation(), success.float(), success.clone(), truncated, {"success": success.clone()}

    def look(self, rows=None) -> dict[str, Tensor]:
        rows = range(self.num_envs) if rows is None else [int(r) for r in rows]
        images = torch.full((len(list(rows)), 3, 32, 32), 40, dtype=torch.uint8)
        for i, row in enumerate(rows):
            self.looked += 1
            for place, colour in ((self.goal[row], (30, 220, 60)), (self.position[row], (230, 40, 30))):
                y, x = ((place.clamp(-1, 1) + 1) * 13).long().tolist()
                images[i, :, y : y + 5, x : x + 5] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
        return {CAMERA: images}


class Savable(Reach):
    """``Reach`` that begins from saved states."""

    start_states = True

    def save_states(self, rows):
        pictures = self.look(rows)[CAMERA].numpy()
        return [
            {"position": self.position[r].numpy().copy(), "goal": self.goal[r].numpy().copy(), CAMERA: pictures[i]}
            for i, r in enumerate(rows)
        ]  # fmt: skip

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed, options=options)
        for row, state in row_starts(options, self).items():
            self.position[row], self.goal[row] = torch.tensor(state["position"]), torch.tensor(state["goal"])
        return observation, info


class Rewound(Reach):
    """One row; a person rewinds ``count`` steps in step ``at`` of the first episode."""

    def __init__(self, at: int, count: int, steps: int = 25) -> None:
        super().__init__(1, steps)
        self.at, self.count = at, count
        self.path: list[Tensor] = []

    def reset(self, *, seed=None, options=None):
        self.path = []
        return super().reset(seed=seed, options=options)

    def step(self, actions):
        self.path.append(self.position[0].clone())
        *result, info = super().step(actions)
        now = len(self.path) == self.at and not bool(self.over)
        if now:
            self.position[0] = self.path[-self.count]
            del self.path[-self.count :]
            self.steps -= self.count
            self.at = -1
        return *result, info | {"rewound": torch.tensor([self.count if now else 0])}


class Walk:
    """Goes to the goal at ``speed``; asks for more than the bounds allow, so that clamping shows."""

    def __init__(self, speed: float = 0.3) -> None:
        self.speed = speed
        self.spec = PolicySpec(action_dim=2, state_keys=(STATE, ENV_STATE))

    def initial_state(self, batch_size: int) -> TensorDict:
        return TensorDict({"steps": torch.zeros(batch_size, dtype=torch.int64)}, [batch_size])

    def needs_images(self, state: TensorDict) -> Tensor:
        return torch.zeros(state.batch_size[0], dtype=torch.bool)

    def act(self, observation, state, *, deterministic=False):
        delta = (observation[ENV_STATE] - observation[STATE]).clamp(-self.speed, self.speed)
        size = len(delta)
        return TensorDict({"action": delta}, [size]), TensorDict({"steps": state["steps"] + 1}, [size])


def walk(env) -> Walk:
    """The expert, as a configuration names it."""
    return Walk()
