"""Rows in this process, and the bookkeeping that the process version (``sim.vector``) shares."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sim.rows import Rows
from sim.shared_memory import Block, Layout
from vla_rl.environment import (
    EnvSpec,
    Observation,
    StartState,
    VlaVectorEnv,
    checked_action,
    row_mask,
    row_seeds,
    row_starts,
    row_tasks,
)
from vla_rl.errors import UserError

Step = tuple[Observation, Tensor, Tensor, Tensor, dict[str, Any]]


def load_adapter(adapter: str) -> Any:
    """The class named by ``module:Class``.

    Raises:
        UserError: no such module or class.
    """
    module, _, name = adapter.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"env.adapter={adapter}: {error}; it must be module:Class") from error


def merge_specs(specs: Sequence[EnvSpec]) -> EnvSpec:
    """One spec for rows of several tasks, which must agree on dimensions, cameras and rate."""
    first = specs[0]
    for spec in specs[1:]:
        for name in ("state_dim", "env_state_dim", "action_low", "action_high", "cameras", "rate_hz"):
            if getattr(spec, name) != getattr(first, name):
                raise UserError(
                    f"env.ids mixes {first.id} and {spec.id}, whose {name} differ "
                    f"({getattr(first, name)} and {getattr(spec, name)}): run them one at a time"
                )
    unique = list(dict.fromkeys(s.id for s in specs))
    tasks = tuple(dict.fromkeys(t for s in specs for t in s.tasks))
    limit = max(s.max_episode_steps for s in specs)
    return replace(first, id="+".join(unique), tasks=tasks, max_episode_steps=limit)


class BatchedEnv(VlaVectorEnv):
    """Bookkeeping of B rows around a ``Block`` of arrays; subclasses fill the block."""

    block: Block
    task_choice = True

    def _set_up(self, rows: list[str], spec: EnvSpec) -> None:
        self._own, self._ids = rows, list(rows)
        self.closed = False
        self.set_spaces(spec, len(rows))
        self._finished = np.ones(len(rows), dtype=bool)
        self._tasks = [""] * len(rows)

    def task_ids(self) -> list[str]:
        """Id of the task that each row plays now."""
        return list(self._ids)

    def own_task_ids(self) -> list[str]:
        """Id of the task that each row plays when nobody chooses another."""
        return list(self._own)

    def _chosen(self, options: dict | None, mask: np.ndarray) -> dict[int, str]:
        """The tasks that ``options`` chooses for the rows in ``mask``; remembers who plays what."""
        chosen = row_tasks(options, self)
        for row in np.flatnonzero(mask).tolist():
            self._ids[row] = chosen[row] if row in chosen else self._own[row]
        return chosen

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError(f"environment {self.env_spec.id} is closed")

    def _observation(self) -> Observation:
        out: Observation = {k: torch.from_numpy(v.copy()) for k, v in self.block.observations.items()}
        out["task"] = list(self._tasks)
        return out

    def _begin_step(self, action: Any) -> None:
        self._check_open()
        checked = checked_action(action, self.env_spec, self.num_envs)
        if self._finished.any():
            rows = np.flatnonzero(self._finished).tolist()
            raise RuntimeError(
                f"rows {rows} have finished: reset them (options={{'reset_mask': ...}}) before step"
            )
        self.block.action[:] = checked.numpy()

    def _end_step(self, restarted: np.ndarray | None = None) -> Step:
        block = self.block
        self._finished = block.terminated | block.truncated
        info: dict[str, Any] = {"success": torch.from_numpy(block.success.copy())}
        if restarted is not None and restarted.any():
            info["worker_restarted"] = torch.from_numpy(restarted)
        return (
            self._observation(),
            torch.from_numpy(block.reward.copy()),
            torch.from_numpy(block.terminated.copy()),
            torch.from_numpy(block.truncated.copy()),
            info,
        )

    def _rows(self, rows: Any) -> list[int]:
        self._check_open()
        wanted = list(range(self.num_envs)) if rows is None else [int(r) for r in rows]
        if any(not 0 <= r < self.num_envs for r in wanted):
            raise IndexError(f"look at rows {wanted}: there are {self.num_envs}")
        return wanted

    def _images(self, rows: list[int]) -> dict[str, Tensor]:
        return {k: torch.from_numpy(v[rows]) for k, v in self.block.images.items()}


class SerialVectorEnv(BatchedEnv):
    """Every row in this process; for debugging, for fast simulators, and for those that step without Python's lock.

    Args:
        adapter: see ``sim.vector.make``.
        rows: task of each row.
        kwargs: for the adapter.
        threads: that step, each its share of the rows.
    """

    def __init__(self, adapter: str, rows: list[str], kwargs: dict[str, Any], threads: int = 1) -> None:
        factory = load_adapter(adapter)
        self.closed = True  # until it is complete: gymnasium's destructor asks
        self.rows = Rows(partial(factory, **kwargs), rows)
        spec = merge_specs([e.spec for e in self.rows.envs])
        self.block = Block(Layout.of(spec, len(rows)))
        self._set_up(rows, spec)
        self.start_states = hasattr(factory, "save_state")
        own, *others = (
            part.tolist() for part in np.array_split(np.arange(len(rows)), min(threads, len(rows)))
        )
        self._shares = own, others
        self._pool = ThreadPoolExecutor(len(others), "simulator") if others else None

    def reset(self, *, seed: Any = None, options: dict | None = None) -> tuple[Observation, dict]:  # type: ignore[override]
        """See ``VlaVectorEnv``."""
        self._check_open()
        seeds, mask = row_seeds(seed, self.num_envs), row_mask(options, self.num_envs)
        starts, chosen = row_starts(options, self), self._chosen(options, mask)
        for row in np.flatnonzero(mask).tolist():
            begun = self.rows.begin(row, seeds[row], starts.get(row), chosen.get(row))
            observation, self._tasks[row] = begun
            self.block.write_observation(row, observation)
        self._finished[mask] = False
        return self._observation(), {}

    def step(self, action: Any) -> Step:  # type: ignore[override]
        """See ``VlaVectorEnv``."""
        self._begin_step(action)
        own, others = self._shares
        waiting = [self._pool.submit(self._step_rows, part) for part in others] if self._pool else []
        try:
            self._step_rows(own)
        finally:
            wait(waiting)
        for share in waiting:
            share.result()
        return self._end_step()

    def _step_rows(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.block.write_step(row, *self.rows[row].step(self.block.action[row]))

    def look(self, rows: Any = None) -> dict[str, Tensor]:
        """See ``VlaVectorEnv``."""
        rows = self._rows(rows)
        for row in rows:
            self.block.write_images(row, self.rows[row].look())
        return self._images(rows)

    def save_states(self, rows: Sequence[int]) -> list[StartState | None]:
        """See ``VlaVectorEnv``."""
        if not self.start_states:
            return super().save_states(rows)
        return [self.rows[row].save_state() for row in self._rows(rows)]  # type: ignore[attr-defined]

    def close(self, **_: Any) -> None:
        """Free the simulators; safe to call twice."""
        self.closed = True
        if self._pool:
            self._pool.shutdown()
        self.rows.close()
