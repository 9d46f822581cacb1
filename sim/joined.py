"""Several vector environments as one: row i is a row of one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sim.serial import merge_specs
from vla_rl.environment import Observation, VlaVectorEnv, checked_action, row_mask, row_seeds


class JoinedEnv(VlaVectorEnv):
    """Rows of ``envs`` side by side.

    Args:
        envs: environments of the same dimensions.
        owner: for each row, the index of its environment; rows of one environment come in their order.
    """

    def __init__(self, envs: Sequence[VlaVectorEnv], owner: Sequence[int]) -> None:
        self.closed = True  # until it is complete: gymnasium's destructor asks
        self.envs = list(envs)
        self.rows = [np.flatnonzero(np.asarray(owner) == i) for i in range(len(self.envs))]
        for env, rows in zip(self.envs, self.rows, strict=True):
            if env.num_envs != len(rows):
                raise ValueError(f"{env.env_spec.id} has {env.num_envs} rows, {len(rows)} are wanted")
        self.set_spaces(merge_specs([env.env_spec for env in self.envs]), len(owner))
        self.closed = False

    def task_ids(self) -> list[str]:
        """Id of each row's task."""
        return self._merge([env.task_ids() for env in self.envs])

    def reset(self, *, seed: Any = None, options: dict | None = None) -> tuple[Observation, dict]:  # type: ignore[override]
        """See ``VlaVectorEnv``."""
        seeds, mask = row_seeds(seed, self.num_envs), row_mask(options, self.num_envs)
        parts = []
        for env, rows in zip(self.envs, self.rows, strict=True):
            options = {"reset_mask": mask[rows]}
            parts.append(env.reset(seed=[seeds[r] for r in rows], options=options)[0])
        return self._merge(parts), {}

    def step(self, action: Any) -> tuple[Observation, Tensor, Tensor, Tensor, dict[str, Any]]:  # type: ignore[override]
        """See ``VlaVectorEnv``."""
        wanted = checked_action(action, self.env_spec, self.num_envs)
        parts = [env.step(wanted[rows]) for env, rows in zip(self.envs, self.rows, strict=True)]
        observation, reward, terminated, truncated, info = (
            self._merge(list(p)) for p in zip(*parts, strict=True)
        )
        return observation, reward, terminated, truncated, info

    def look(self, rows: Any = None) -> dict[str, Tensor]:
        """See ``VlaVectorEnv``."""
        wanted = list(range(self.num_envs)) if rows is None else [int(r) for r in rows]
        if any(not 0 <= r < self.num_envs for r in wanted):
            raise IndexError(f"look at rows {wanted}: there are {self.num_envs}")
        out = {
            key: torch.zeros((len(wanted), 3, height, width), dtype=torch.uint8)
            for key, (height, width) in self.env_spec.cameras.items()
        }
        for env, own in zip(self.envs, self.rows, strict=True):
            place = {int(row): i for i, row in enumerate(own)}
            asked = [(i, place[r]) for i, r in enumerate(wanted) if r in place]
            if asked:
                for key, images in env.look([local for _, local in asked]).items():
                    out[key][[i for i, _ in asked]] = images
        return out

    def close(self, **_: Any) -> None:
        """Close all; safe to call twice."""
        self.closed = True
        for env in self.envs:
            env.close()

    def _merge(self, parts: list[Any]) -> Any:
        """Values of each environment's rows, put in the order of all rows."""
        first = parts[0]
        if isinstance(first, dict):
            keys = dict.fromkeys(key for part in parts for key in part)
            return {key: self._merge([part[key] for part in parts]) for key in keys}
        order = np.argsort(np.concatenate(self.rows), kind="stable")
        if isinstance(first, Tensor):
            return torch.cat(parts)[torch.from_numpy(order)]
        flat = [value for part in parts for value in part]
        return [flat[i] for i in order]
