"""Policy + vector environment -> frames, rendering and querying no more often than the method needs.

One ``Collector`` serves training, evaluation and recording of demonstrations: episodes are seeded one by one,
finished rows are reset in place, and the closing frame of each episode carries what the base would have done
next (needed to bootstrap a truncation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.environment import StartState, VlaVectorEnv
from vla_rl.errors import NonFiniteError
from vla_rl.keys import ENV_STATE, INSTRUCTION, STATE, TASK
from vla_rl.nn.language import sentence_vectors
from vla_rl.policies.base import Observation, Policy, check_compatible, pictured, reset_rows

FrameSink = Callable[[TensorDict, Tensor], None]
"""Takes k frames and the environment row of each (see ``Collector``)."""


@dataclass
class Episode:
    """A finished episode.

    Attributes:
        seed: the environment seed it began from.
        task_id: which task it was.
        success: true success.
        steps: its length in control steps.
        row: environment row it ran in.
        interrupted: the worker died or the collection was cut; not counted as a failure.
        returned: it began from a saved state, not from the environment's own beginning.
    """

    seed: int
    task_id: str
    success: bool
    steps: int
    row: int
    interrupted: bool = False
    returned: bool = False


class Starts(Protocol):
    """Decides where episodes begin, from what it is told of earlier ones (``vla_rl.schedule.Schedule``)."""

    def begin(self, rows: Sequence[int]) -> dict[int, StartState]:
        """Saved states for those of ``rows`` that begin there."""
        ...

    def look(self, steps: Sequence[int]) -> None:
        """Called before every step, with the steps [B] since each row's beginning."""
        ...

    def took_over(self, row: int, step: int) -> None:
        """Somebody is engaged at this step."""
        ...

    def rewound(self, row: int, step: int) -> None:
        """The episode is back at ``step``."""
        ...

    def ended(self, row: int, success: bool, step: int) -> bool:
        """The episode is over; True when it had begun from a saved state."""
        ...


class Tasks(Protocol):
    """Decides which task each episode plays (``vla_rl.rollout.curriculum.Curriculum``)."""

    def choose(self, rows: Sequence[int]) -> dict[int, str]:
        """Task id for those of ``rows`` that do not play their own."""
        ...


class Collector:
    """Runs ``policy`` in ``env`` step by step.

    Frames given to ``sink`` at each step, for the rows that were stepped: ``observation`` (vector keys; also
    images when ``store_images``; and the instruction as a vector), ``base_action`` [k, N, A], ``action`` [k, A] (executed), ``intervention``,
    ``reward``, ``terminated``, ``truncated``, ``final`` [k]. An episode is closed by a frame with ``final``
    true: its last observation, zero action, and the base's next action. When a person has rewound a robot
    (``info["rewound"]``), the frames of that step carry ``forget`` [k] int64: the last so many frames of the row, this one
    included, are to be left out of replay. The policy begins anew there: a chunk planned before is stale.

    Args:
        env: the batch of environments.
        policy: who acts.
        seeds: (episode number, row) -> environment seed.
        sink: where frames go; None = nowhere.
        on_episode: called with each finished ``Episode``.
        store_images: keep every step's images in the frames (renders every row at every step).
        starts: decides where episodes begin; None = the environment.
        tasks: decides which task they play; None = each row its own.

    Raises:
        UserError: policy and environment do not fit.
    """

    def __init__(
        self,
        env: VlaVectorEnv,
        policy: Policy,
        seeds: Callable[[int, int], int],
        *,
        sink: FrameSink | None = None,
        on_episode: Callable[[Episode], None] | None = None,
        store_images: bool = False,
        starts: Starts | None = None,
        tasks: Tasks | None = None,
    ) -> None:
        check_compatible(policy.spec, env.env_spec)
        self.env, self.policy, self.seeds = env, policy, seeds
        self.sink, self.on_episode, self.store_images = sink, on_episode, store_images
        self.starts, self.tasks = starts, tasks
        spec = env.env_spec
        self.low = torch.tensor(spec.action_low)
        self.high = torch.tensor(spec.action_high)
        self.vector_keys = [STATE] + ([ENV_STATE] if spec.env_state_dim else [])
        self.image_keys = list(spec.cameras) if store_images else list(policy.spec.image_keys)
        self.idle: Tensor | None = None
        """Bool [B]: rows whose episode nobody counts: stepped with zero actions, not looked at and not asked about (without a ``sink``)."""
        self.episodes_started = 0
        self.steps = 0
        self.looks = 0
        self.queries = 0

    def begin(self) -> None:
        """Start a new episode in every row; episodes in flight are abandoned (close them first)."""
        count = self.env.num_envs
        self.episode_seed = [0] * count
        self.length = np.zeros(count, dtype=np.int64)
        self.observation: Observation = {}
        self.state = self.policy.initial_state(count)
        self._reset(np.ones(count, dtype=bool))

    def _reset(self, mask: np.ndarray) -> None:
        seeds = list(self.episode_seed)
        for row in np.flatnonzero(mask):
            seeds[row] = self.seeds(self.episodes_started, int(row))
            self.episodes_started += 1
        self.episode_seed = seeds
        options: dict = {"reset_mask": mask}
        if self.starts is not None:
            starts = self.starts.begin(np.flatnonzero(mask).tolist())
            options |= {"start": starts} if starts else {}
        if self.tasks is not None:
            options["task"] = self.tasks.choose(np.flatnonzero(mask).tolist())
        self.observation, _ = self.env.reset(seed=seeds, options=options)
        self.length[mask] = 0
        self.state = reset_rows(self.policy, self.state, torch.from_numpy(mask))

    def _seen(self, rows: Tensor) -> Observation:
        """The observation with images of the bool [B] ``rows`` rendered now, zeros elsewhere."""
        if not self.image_keys:
            return dict(self.observation)
        index = rows.nonzero().flatten()
        images = self.env.look(index) if len(index) else {}
        self.looks += len(index)
        env = self.env
        return pictured(self.observation, self.image_keys, images, index, env.env_spec, env.num_envs)

    def _wanted(self) -> Tensor:
        """Bool [B]: rows whose cameras must be rendered before the next decision."""
        if self.store_images:
            return torch.ones(self.env.num_envs, dtype=torch.bool)
        if not self.image_keys:
            return torch.zeros(self.env.num_envs, dtype=torch.bool)
        needed = self.policy.needs_images(self.state)
        return needed if self.idle is None else needed & ~self.idle

    def step(
        self, deterministic: bool = False, *, meanwhile: Callable[[], None] | None = None
    ) -> list[Episode]:
        """One control step of every row; finished rows are closed, reported and begun anew.

        Args:
            deterministic: passed to the policy.
            meanwhile: work to do while simulator processes step (updates); it sees the frames before this step.

        Returns:
            The episodes that ended at this step.

        Raises:
            NonFiniteError: the policy's action is NaN or infinite.
        """
        if self.starts is not None:
            self.starts.look(self.length.tolist())
        observation = self._seen(self._wanted())
        output, next_state = self._decide(observation, deterministic)
        action = output["action"]
        if not torch.isfinite(action).all():
            raise NonFiniteError("the policy's action is not finite")
        action = torch.maximum(torch.minimum(action, self.high), self.low)
        if self.starts is not None and "intervention" in output:
            for row in output["intervention"].nonzero().flatten().tolist():
                self.starts.took_over(row, int(self.length[row]))
        # Before the step: an environment may hand out views of memory that the step overwrites.
        frames = self._frames(observation, output, action) if self.sink is not None else None
        self.env.step_async(action)
        if meanwhile is not None:
            meanwhile()
        after, reward, terminated, truncated, info = self.env.step_wait()
        self.length += 1
        count = self.env.num_envs
        self.steps += count
        self.last_base = _base_candidates(output)
        rewound = info.get("rewound")
        if rewound is not None and not rewound.any():
            rewound = None
        if self.sink is not None and frames is not None:
            frames.update({"reward": reward, "terminated": terminated, "truncated": truncated})
            if rewound is not None:
                frames["forget"] = rewound
            self.sink(frames, torch.arange(count))
        self.observation, self.state = after, next_state
        if rewound is not None:
            self._rewind(rewound)
        done = terminated | truncated
        if not done.any():
            return []
        return self._finish(terminated, truncated, info)

    def _decide(self, observation: Observation, deterministic: bool) -> tuple[TensorDict, TensorDict]:
        """What the policy says, and its next state."""
        if self.idle is None or not self.idle.any():
            return self.policy.act(observation, self.state, deterministic=deterministic)
        index = (~self.idle).nonzero().flatten()
        part, state = _rows(observation, index), self.state.clone()
        output, state[index] = self.policy.act(part, self.state[index], deterministic=deterministic)
        action = torch.zeros(self.env.num_envs, len(self.low))
        action[index] = output["action"]
        return TensorDict({"action": action}, batch_size=[len(action)]), state

    def _rewind(self, steps: Tensor) -> None:
        self.length -= steps.numpy()
        self.state = reset_rows(self.policy, self.state, steps > 0)
        if self.starts is not None:
            for row in steps.nonzero().flatten().tolist():
                self.starts.rewound(row, int(self.length[row]))

    def _finish(self, terminated: Tensor, truncated: Tensor, info: dict) -> list[Episode]:
        done = terminated | truncated
        self._close(done, bootstrap=truncated & ~terminated)
        success = torch.as_tensor(info["success"])
        broken = [info[key] for key in ("worker_restarted", "discarded") if key in info]
        ids = self.env.task_ids()
        episodes = []
        for row in done.nonzero().flatten().tolist():
            episode = Episode(
                seed=self.episode_seed[row],
                task_id=ids[row],
                success=bool(success[row]),
                steps=int(self.length[row]),
                row=row,
                interrupted=any(bool(flags[row]) for flags in broken),
            )
            if self.starts is not None and not episode.interrupted:
                episode.returned = self.starts.ended(row, episode.success, episode.steps)
            episodes.append(episode)
            if self.on_episode is not None:
                self.on_episode(episode)
        self._reset(done.numpy())
        return episodes

    def cut(self) -> None:
        """Close every episode in flight as truncated (before a checkpoint), so that nothing of it is lost."""
        rows = torch.from_numpy(self.length > 0)
        if rows.any():
            self._close(rows, bootstrap=rows)

    def _close(self, rows: Tensor, bootstrap: Tensor) -> None:
        """Send the closing frames of ``rows``.

        Only rows to ``bootstrap`` ask the base what it would do next: after a success nothing follows.
        """
        if self.sink is None:
            return
        wanted = (self._wanted() & bootstrap) | (rows if self.store_images else torch.zeros_like(rows))
        observation = self._seen(wanted)
        closing = self._frames(observation, self._nothing(), torch.zeros(self.env.num_envs, len(self.low)))
        index = bootstrap.nonzero().flatten()
        if len(index):
            output, _ = self.policy.act(_rows(observation, index), self.state[index], deterministic=True)
            closing["base_action"][index] = _base_candidates(output)
        closing["final"] = torch.ones(self.env.num_envs, dtype=torch.bool)
        index = rows.nonzero().flatten()
        self.sink(closing[index], index)

    def _nothing(self) -> TensorDict:
        """An output whose base actions are zeros, shaped like the last decision's."""
        return TensorDict(
            {
                "action": torch.zeros_like(self.last_base[:, 0]),
                "base_action": torch.zeros_like(self.last_base),
            }
        )

    def _frames(self, observation: Observation, output: TensorDict, action: Tensor) -> TensorDict:
        count = self.env.num_envs
        keys = self.vector_keys + (self.image_keys if self.store_images else [])
        flags = torch.zeros(count, dtype=torch.bool)
        seen = {key: observation[key].clone() for key in keys}
        seen[INSTRUCTION] = sentence_vectors(observation[TASK])
        return TensorDict(
            {
                "observation": TensorDict(seen, batch_size=[count]),
                "base_action": _base_candidates(output).clone(),
                "action": action,
                "intervention": output.get("intervention", flags),
                "reward": torch.zeros(count),
                "terminated": flags.clone(),
                "truncated": flags.clone(),
                "final": flags.clone(),
            },
            batch_size=[count],
        )


def _rows(observation: Observation, index: Tensor) -> Observation:
    """The rows [k] of an observation."""
    return {
        key: [value[i] for i in index.tolist()] if isinstance(value, list) else value[index]
        for key, value in observation.items()
    }


def _base_candidates(output: TensorDict) -> Tensor:
    """The base's candidate actions [B, N, A] of a decision; a policy without a base is its own."""
    for key in ("base_action", "base_candidates"):
        if key in output:
            return output[key] if output[key].dim() == 3 else output[key][:, None]
    base = output["action"]
    return base if base.dim() == 3 else base[:, None]
