"""The environment contract: a batch of simulated environments, or one robot on a clock.

It is ``gymnasium.vector.VectorEnv`` with batched torch tensors, LeRobot keys and one addition, ``look``.
Conformance: ``vla_rl.checks.check_env``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from vla_rl.config import nearest
from vla_rl.errors import UserError

Observation = dict[str, Any]
"""Key -> [B, ...] tensor, and ``task`` -> list of B strings. See ``vla_rl.keys``."""

StartState = dict[str, Any]
"""Name -> numpy array: a moment of one row, which only its own kind of environment can read. A robot's may have pictures
(``observation.images.*``: uint8 [3, H, W]); whoever hands it back may add ``picture``, the path of a file that shows them."""


@dataclass(frozen=True)
class EnvSpec:
    """What a policy must know of an environment before either is stepped.

    Attributes:
        id: name of the environment, e.g. ``PushCube-v1``.
        state_dim: S of ``observation.state``.
        env_state_dim: E of ``observation.environment_state``; 0 = none (a real robot).
        action_low: [A] lower bounds in the environment's physical units.
        action_high: [A] upper bounds.
        cameras: feature key (``observation.images.<name>``) -> (height, width).
        tasks: every instruction this environment may give.
        max_episode_steps: the time limit, in control steps.
        rate_hz: control rate.
        state_names: names of the S proprioceptive numbers (may be empty).
        action_names: names of the A action numbers (may be empty).
        returns: least and largest discounted return from any moment on; of a sparse success, 0 and 1.
    """

    id: str
    state_dim: int
    env_state_dim: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    cameras: dict[str, tuple[int, int]]
    tasks: tuple[str, ...]
    max_episode_steps: int
    rate_hz: float
    state_names: tuple[str, ...] = field(default=())
    action_names: tuple[str, ...] = field(default=())
    returns: tuple[float, float] = (0.0, 1.0)

    @property
    def action_dim(self) -> int:
        """A, the number of action dimensions."""
        return len(self.action_low)

    def instruction_of(self, name: str) -> str:
        """The instruction that ``name`` means: one of ``tasks``, or the id of an environment that gives a single one.

        Raises:
            UserError: neither.
        """
        ids = self.id.split("+")
        by_id = dict(zip(ids, self.tasks, strict=True)) if len(ids) == len(self.tasks) else {}
        if name not in self.tasks and name not in by_id:
            raise UserError(f"no task {name} in {self.id}: {nearest(name, [*by_id, *self.tasks])}")
        return by_id.get(name, name)


class VlaVectorEnv(gym.vector.VectorEnv):
    """A batch of B environments; the base class of every adapter.

    - ``reset(seed, options)``: ``seed`` is None, one int (row i gets seed + i) or B ints; an episode is a
      function of its seed alone. ``options={"reset_mask": bool [B]}`` resets only those rows (others keep
      going and their observation is returned unchanged); ``seed`` then still has B entries.
      ``options={"start": {row: StartState}}``, where ``start_states`` says so: those of the rows that are reset begin at
      a moment that ``save_states`` gave, with all of the time limit before them; their seed is ignored.
      ``options={"task": {row: id}}``, where ``task_choice`` says so: those of the rows that are reset play that one of the
      environment's tasks instead of their own, until they are reset again.
    - ``step(action [B, A])`` -> ``(observation, reward [B] float32, terminated [B] bool, truncated [B] bool,
      info)``, all torch; ``info["success"]`` [B] bool: success at this step; ``info["discarded"]`` [B] bool, where there is
      somebody to say so: the episode ends and does not count; ``info["rewound"]`` [B] int64, where there is a person to
      ask for it: the last so many steps, this one included, have been undone (see ``docs/human_in_the_loop.md``).
      Autoreset mode is gymnasium's
      ``DISABLED``: the observation returned with a done flag *is* the final observation, ``look`` still shows
      it, and the row must be reset before it is stepped again (stepping a finished row raises RuntimeError).
      ``step(action, rows=...)`` is not offered: finished rows are reset first.
    - ``look(rows)``: renders only those rows, now. Observations carry no images otherwise.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}
    env_spec: EnvSpec
    num_envs: int
    start_states = False
    """Whether ``save_states`` and ``options["start"]`` are offered."""
    task_choice = False
    """Whether ``options["task"]`` is offered."""
    stops: Sequence[str] = ()
    """Why a robot's safety node has ended episodes so far; simulators have none."""
    halt: str | None = None
    """Why training should not go on in this environment (a critic that is being exploited); None = nothing speaks against it."""
    shaping_key: str | None = None
    """Camera that a recorded episode has to show, to be paid what a played one is (``shaping_of``); None = nothing is paid beside success."""
    trusted = True
    """Whether the successes of late are to be believed: a policy from such a time is worth going back to."""

    def metrics(self) -> dict[str, float]:
        """Numbers of its own for a run's log; most have none."""
        return {}

    def exhibits(self) -> dict[str, Tensor]:
        """Name -> uint8 [3, H, W] that a person should see beside a run's report; most have none."""
        return {}

    def discounted_by(self, gamma: float, steps: int) -> None:
        """The learner discounts by ``gamma`` every ``steps`` control steps; a shaped reward has to know."""

    def shaping_of(self, pictures: Tensor, task: str, success: bool) -> Tensor:
        """What T recorded steps earn beside success, [T], by the ``pictures`` [T + 1, 3, H, W] of ``shaping_key`` around them."""
        return torch.zeros(len(pictures) - 1)

    def truth(self) -> AbstractContextManager[Any]:
        """While it is entered, reward and success are the environment's own, whatever else judges: for evaluations."""
        return nullcontext()

    def reset(  # type: ignore[override]
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin episodes in the rows that ``options["reset_mask"]`` names (all without it)."""
        raise NotImplementedError

    def look(self, rows: Sequence[int] | Tensor | None = None) -> dict[str, Tensor]:
        """Render rows' cameras in their present state.

        Args:
            rows: indices of the k rows to render; None = all.

        Returns:
            camera feature key -> [k, 3, H, W] uint8.
        """
        raise NotImplementedError

    def save_states(self, rows: Sequence[int]) -> list[StartState | None]:
        """The present moment of each of ``rows``, to begin from later; None for a row that is lost.

        Raises:
            UserError: not offered.
        """
        raise UserError(f"{self.env_spec.id} cannot begin from saved states")

    def step_async(self, action: Any) -> None:  # type: ignore[override]
        """Begin ``step``, so that the caller can work until ``step_wait``; nothing may be asked in between.

        This default only remembers the action; process vectorisation sends it.
        """
        self._pending = action

    def step_wait(self) -> tuple[Observation, Tensor, Tensor, Tensor, dict[str, Any]]:
        """The result of the step that ``step_async`` began."""
        return self.step(self._pending)

    def task_ids(self) -> list[str]:
        """Id of the task each of the B rows is playing (for per-task success)."""
        return [self.env_spec.id] * self.num_envs

    def own_task_ids(self) -> list[str]:
        """The same for rows for which no task is chosen (``options["task"]``)."""
        return self.task_ids()

    def set_spaces(self, spec: EnvSpec, num_envs: int) -> None:
        """Fill in gymnasium's space attributes from the spec."""
        self.env_spec, self.num_envs = spec, num_envs
        low = np.asarray(spec.action_low, np.float32)
        high = np.asarray(spec.action_high, np.float32)
        spaces: dict[str, gym.Space] = {
            "observation.state": gym.spaces.Box(-np.inf, np.inf, (spec.state_dim,), np.float32)
        }
        if spec.env_state_dim:
            spaces["observation.environment_state"] = gym.spaces.Box(
                -np.inf, np.inf, (spec.env_state_dim,), np.float32
            )
        self.single_observation_space = gym.spaces.Dict(spaces)
        self.single_action_space = gym.spaces.Box(low, high, dtype=np.float32)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)


def row_seeds(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    """Spread ``seed`` over rows as the contract says (int: seed + i)."""
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, (int, np.integer)):
        return [int(seed) + i for i in range(num_envs)]
    if len(seed) != num_envs:
        raise UserError(
            f"seed has {len(seed)} entries for {num_envs} environments: give one each, or one int"
        )
    return [None if s is None else int(s) for s in seed]


def row_mask(options: dict[str, Any] | None, num_envs: int) -> np.ndarray:
    """The bool [B] mask of rows to reset that ``options`` asks for (all when absent)."""
    if not options or options.get("reset_mask") is None:
        return np.ones(num_envs, dtype=bool)
    mask = np.asarray(options["reset_mask"], dtype=bool)
    if mask.shape != (num_envs,):
        raise UserError(f"reset_mask has shape {mask.shape}, needs ({num_envs},)")
    return mask


def checked_action(action: Any, spec: EnvSpec, num_envs: int) -> Tensor:
    """``action`` as float32 [B, A] on the CPU, or a clear error.

    Raises:
        UserError: wrong shape.
        NonFiniteError: NaN or infinity.
    """
    from vla_rl.errors import NonFiniteError

    action = torch.as_tensor(action, dtype=torch.float32).detach().cpu()
    if tuple(action.shape) != (num_envs, spec.action_dim):
        raise UserError(
            f"action has shape {tuple(action.shape)}, environment {spec.id} needs ({num_envs}, {spec.action_dim})"
        )
    if not torch.isfinite(action).all():
        rows = (~torch.isfinite(action).all(dim=1)).nonzero().flatten().tolist()
        raise NonFiniteError(f"action of environment rows {rows} is not finite")
    return action


def row_starts(options: dict[str, Any] | None, env: VlaVectorEnv) -> dict[int, StartState]:
    """The rows that ``options`` asks to begin from a saved state.

    Raises:
        UserError: the environment offers none.
    """
    starts = (options or {}).get("start") or {}
    if starts and not env.start_states:
        raise UserError(f"{env.env_spec.id} cannot begin from saved states")
    return {int(row): state for row, state in starts.items()}


def row_tasks(options: dict[str, Any] | None, env: VlaVectorEnv) -> dict[int, str]:
    """The rows for which ``options`` chooses a task.

    Raises:
        UserError: the environment lets nobody choose, or has no such task.
    """
    tasks = (options or {}).get("task") or {}
    if tasks and not env.task_choice:
        raise UserError(f"{env.env_spec.id}: the tasks of its rows cannot be chosen")
    known = set(env.own_task_ids())
    for task in tasks.values():
        if task not in known:
            raise UserError(f"no task {task} in {env.env_spec.id}: {nearest(task, sorted(known))}")
    return {int(row): str(task) for row, task in tasks.items()}
