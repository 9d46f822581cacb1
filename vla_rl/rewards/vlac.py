"""A critic's progress and done in place of the environment's reward (VLAC, arXiv 2509.15937).

Around any environment: learners see the critic's reward and the end that it believes in, and never the simulator's. What the
simulator knows is kept for the audit, and counts in evaluations (``truth``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vla_rl.critic.film import judge
from vla_rl.critic.model import Critic, threshold_of
from vla_rl.critic.value import ValueFilter
from vla_rl.environment import Observation, VlaVectorEnv, row_mask
from vla_rl.errors import UserError
from vla_rl.keys import TASK, image_key
from vla_rl.rewards.evidence import Evidence
from vla_rl.rewards.guards import SHAPINGS, Agreement, Audit, shaped

Judgement = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Looked at [k, tokens, D], pictures uint8 [k, 3, H, W], whether the task had been done by then [k], pair and its deviation [k], whole and its deviation [k], chance of done [k]."""


@dataclass
class VlacConfig:
    """Settings.

    Attributes:
        skip: control steps between judgements; None = as the critic was trained. The length of a chunk is a good choice.
        camera: name; None = the environment's first.
        shaping: reward for progress (``vla_rl.rewards.guards``): ``potential``, ``clip``, ``delta``, ``none``, ``unguarded``.
        weight: of that reward.
        gamma: discount between two judgements, of ``potential``; None = the learner's own, over the steps between them.
        limit: of ``clip``.
        done_reward: at the end that the critic believes in.
        threshold: chance of done; None = as calibrated.
        agree: judgements in a row that have to say done.
        late: judge beside stepping, in a thread of its own; reward and end then come one judgement late.
        window: episodes of the audit.
        false_limit: share of falsely believed successes at which training stops; 1 = never.
    """

    skip: int | None = None
    camera: str | None = None
    shaping: str = "potential"
    weight: float = 0.5
    gamma: float | None = None
    limit: float = 0.1
    done_reward: float = 1.0
    threshold: float | None = None
    agree: int = 2
    late: bool = False
    window: int = 50
    false_limit: float = 0.5


def _returns(config: VlacConfig) -> tuple[float, float]:
    """Least and largest discounted return from any moment on; changes of value that are paid one by one have no bound.

    A potential takes its weight off and adds nothing; between two judgements more, as it is paid late (``JudgedEnv._shaped``): twice
    that is enough for 23 steps at a discount of 0.97.
    """
    unbounded = math.inf if config.weight else 0.0
    below = {"potential": 2 * config.weight, "clip": unbounded}.get(config.shaping, 0.0)
    above = {"delta": config.weight, "clip": unbounded, "unguarded": unbounded}.get(config.shaping, 0.0)
    return -below, config.done_reward + above


class JudgedEnv(VlaVectorEnv):
    """``env`` as a critic rewards it.

    ``info["success"]`` stays what the environment knows (an episode that has succeeded at some moment); ``info["believed"]`` [B] bool
    is the critic's.

    Args:
        env: goes on after success (``env.after_success=null``), so that only the critic ends an episode early.
        critic: frozen.
        config: settings.
        references: instruction -> a reference, looked at (``Critic.refer``).

    Raises:
        UserError: a camera that is not there or of another size, or settings that mean nothing.
    """

    def __init__(
        self,
        env: VlaVectorEnv,
        critic: Critic,
        config: VlacConfig,
        references: dict[str, Tensor] | None = None,
    ) -> None:
        self.closed = True  # until it is complete: gymnasium's destructor asks
        spec = env.env_spec
        if config.shaping not in SHAPINGS:
            raise UserError(f"reward.shaping={config.shaping}: choose from {', '.join(SHAPINGS)}")
        self.key = image_key(config.camera) if config.camera else next(iter(spec.cameras), "")
        if self.key not in spec.cameras:
            have = ", ".join(spec.cameras) or "none"
            raise UserError(
                f"reward.camera={config.camera}: {spec.id} has the cameras {have}; a critic needs one (env.cameras)"
            )
        self.skip = config.skip or int(critic.notes["skip"])
        if self.skip < 1:
            raise UserError(f"reward.skip={config.skip} must be at least 1")
        critic.check_size(torch.empty(0, 3, *spec.cameras[self.key]))
        self.env, self.critic, self.config = env, critic, config
        self.references = references or {}
        self.set_spaces(replace(spec, returns=_returns(config)), env.num_envs)
        self.shaping_key = None if config.shaping == "none" or not config.weight else self.key
        self.start_states, self.task_choice = env.start_states, env.task_choice
        count = env.num_envs
        self.thresholds = {task: self._threshold(task) for task in spec.tasks}
        self.track, self.agreement = ValueFilter(count), Agreement(count, config.agree)
        self.audit, self.shown = Audit(config.window, config.false_limit), Evidence()
        self.steps = torch.zeros(count, dtype=torch.long)
        self.judged_at = torch.zeros(count, dtype=torch.long)
        self.learners = (1.0, 1)
        """The learner's discount, and the control steps that it is of."""
        self.best = torch.zeros(count)
        self.number = torch.zeros(count, dtype=torch.long)
        self.first: Tensor | None = None
        self.last: Tensor | None = None
        self.judging = True
        self._pool = ThreadPoolExecutor(1) if config.late else None
        self._pending: tuple[Future[Judgement], Tensor, Tensor] | None = None
        self.closed = False

    def _threshold(self, task: str) -> float:
        """Chance from which a task counts as done.

        Raises:
            UserError: the critic has none for it.
        """
        if self.config.threshold is not None:
            return self.config.threshold
        found = threshold_of(self.critic.notes, task)
        if found > 1:
            raise UserError(
                f"the critic's done was never right often enough to set a threshold for '{task}': train it longer, or set "
                "reward.threshold"
            )
        return found

    # ---- the environment's own --------------------------------------------------------------------------

    @property
    def trusted(self) -> bool:  # type: ignore[override]
        """As the audit says."""
        return self.audit.trusts()

    @property
    def stops(self) -> Sequence[str]:  # type: ignore[override]
        """The environment's."""
        return self.env.stops

    def task_ids(self) -> list[str]:
        """The environment's."""
        return self.env.task_ids()

    def own_task_ids(self) -> list[str]:
        """The environment's."""
        return self.env.own_task_ids()

    def look(self, rows: Any = None) -> dict[str, Tensor]:
        """The environment's."""
        return self.env.look(rows)

    def save_states(self, rows: Sequence[int]) -> Any:
        """The environment's."""
        return self.env.save_states(rows)

    def close(self, **_: Any) -> None:
        """The environment's, and the thread's end."""
        if not self.closed and self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self.closed = True
        self.env.close()

    def discounted_by(self, gamma: float, steps: int) -> None:
        """See ``VlaVectorEnv``."""
        self.learners = (gamma, steps)

    def shaping_of(self, pictures: Tensor, task: str, success: bool) -> Tensor:
        """See ``VlaVectorEnv``: paid where a played episode would be judged."""
        film = judge(self.critic, pictures, task, self.references.get(task), self.skip)
        before, after = film.value[:-1], film.value[1:]
        over = torch.zeros(len(after), dtype=torch.bool)
        over[-1] = success
        paid = torch.zeros(len(pictures) - 1)
        paid[film.moments[1:] - 1] = self._shaped(
            before, after, film.value.cummax(0)[0][:-1], over, film.moments.diff()
        )
        return paid

    @contextmanager
    def truth(self) -> Iterator[None]:
        """See ``VlaVectorEnv``; the episodes in flight have to be closed."""
        before, self.judging, self._pending = self.judging, False, None
        try:
            yield
        finally:
            self.judging = before

    # ---- episodes ---------------------------------------------------------------------------------------

    def reset(self, *, seed: Any = None, options: dict | None = None) -> tuple[Observation, dict]:  # type: ignore[override]
        """See ``VlaVectorEnv``."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.tasks = observation[TASK]
        mask = torch.from_numpy(row_mask(options, self.num_envs))
        self.steps[mask], self.judged_at[mask], self.best[mask] = 0, 0, 0.0
        self.number[mask] += 1
        self.track.begin(mask)
        self.agreement.begin(mask)
        if self.judging:
            rows = mask.nonzero().flatten()
            pictures = self.env.look(rows)[self.key]
            self.shown.begin(rows, pictures)
            with torch.no_grad():
                seen = self.critic.look(pictures).cpu()
            if self.first is None or self.last is None:
                self.first = torch.zeros(self.num_envs, *seen.shape[1:], dtype=seen.dtype)
                self.last = torch.zeros_like(self.first)
            self.first[rows], self.last[rows] = seen, seen
        return observation, info

    def step(self, action: Any) -> tuple[Observation, Tensor, Tensor, Tensor, dict[str, Any]]:  # type: ignore[override]
        """See ``VlaVectorEnv``."""
        self.step_async(action)
        return self.step_wait()

    def step_async(self, action: Any) -> None:  # type: ignore[override]
        """See ``VlaVectorEnv``."""
        self.env.step_async(action)

    def step_wait(self) -> tuple[Observation, Tensor, Tensor, Tensor, dict[str, Any]]:
        """See ``VlaVectorEnv``."""
        observation, reward, terminated, truncated, info = self.env.step_wait()
        self.tasks = observation[TASK]
        self.steps += 1
        if not self.judging:
            over = terminated | torch.as_tensor(info["success"])
            return observation, reward, over, truncated & ~over, info
        lost = info.get("worker_restarted", torch.zeros(self.num_envs, dtype=torch.bool))
        if (rewound := info.get("rewound")) is not None and rewound.any():
            self._rewound(rewound)
        success = torch.as_tensor(info["success"])
        reward, believed = self._judge(truncated | terminated, lost, success)
        over = terminated | believed
        truncated = truncated & ~over
        for row in ((over | truncated) & ~lost).nonzero().flatten().tolist():
            # Values begin at 0 and never fall below it: the best is their range.
            value, spread = float(self.track.value[row]), float(self.best[row])
            self.audit.ended(bool(believed[row]), bool(success[row]), value, spread)
            self.shown.ended(row, bool(believed[row]), bool(success[row]))
        self.halt = self.audit.verdict()
        return observation, reward, over, truncated, info | {"believed": believed}

    def metrics(self) -> dict[str, float]:
        """Of the audit."""
        return self.env.metrics() | self.audit.metrics()

    def exhibits(self) -> dict[str, Tensor]:
        """What the critic took for done of late, rightly and wrongly, and what it missed."""
        return self.env.exhibits() | self.shown.sheets()

    # ---- judging ----------------------------------------------------------------------------------------

    def _judge(self, ending: Tensor, lost: Tensor, success: Tensor) -> tuple[Tensor, Tensor]:
        """Reward and believed end [B] of this step; ``success`` [B] is the environment's, for the evidence alone."""
        reward, believed = torch.zeros(self.num_envs), torch.zeros(self.num_envs, dtype=torch.bool)
        due = ((self.steps % self.skip == 0) | ending) & ~lost
        if not due.any():
            return reward, believed
        rows = due.nonzero().flatten()
        pictures = self.env.look(rows)[self.key]
        if self._pool is None:
            self._apply(self._ask(rows, pictures, success[rows], self._asked(rows)), rows, reward, believed)
            return reward, believed
        self._collect(reward, believed)
        now = self._pool.submit(self._ask, rows, pictures, success[rows], self._asked(rows))
        self._pending = (now, rows, self.number[rows].clone())
        if ending.any():  # nothing comes after that could still be given
            self._collect(reward, believed)
        return reward, believed

    def _collect(self, reward: Tensor, believed: Tensor) -> None:
        if self._pending is None:
            return
        future, rows, numbers = self._pending
        self._pending = None
        found = future.result()
        same = self.number[rows] == numbers
        self._apply(tuple(part[same] for part in found), rows[same], reward, believed)  # type: ignore[arg-type]

    def _asked(self, rows: Tensor) -> list[str]:
        return [self.tasks[row] for row in rows.tolist()]

    def _ask(self, rows: Tensor, pictures: Tensor, true: Tensor, tasks: list[str]) -> Judgement:
        """The critic's answers for ``rows`` [k]; rows with a reference and rows without are asked apart."""
        assert self.first is not None and self.last is not None
        critic = self.critic
        with torch.no_grad():
            seen = critic.look(pictures).cpu()
        out = [torch.zeros(len(rows)) for _ in range(5)]
        shown = [task if task in self.references else "" for task in tasks]
        for task in dict.fromkeys(shown):
            mine = torch.tensor([i for i, name in enumerate(shown) if name == task])
            names, reference = [tasks[i] for i in mine.tolist()], self.references.get(task)
            at, there = rows[mine], seen[mine].to(critic.device)
            before = torch.cat([self.last[at], self.first[at]]).to(critic.device)
            mean, std = critic.progress(before, torch.cat([there, there]), names * 2, reference)
            (pair, whole), (pair_std, whole_std) = mean.chunk(2), std.chunk(2)
            answers = (pair, pair_std, whole, whole_std, critic.done(there, names, reference))
            for column, answer in zip(out, answers, strict=True):
                column[mine] = answer
        return seen, pictures, true, out[0], out[1], out[2], out[3], out[4]

    def _apply(self, found: Judgement, rows: Tensor, reward: Tensor, believed: Tensor) -> None:
        """Write the rewards and ends of ``rows`` [k]."""
        assert self.last is not None
        if not len(rows):
            return
        seen, pictures, true, pair, pair_std, whole, whole_std, chances = found
        self.shown.look(rows, pictures, true)
        config, before = self.config, self.track.value[rows]
        after = self.track.update(rows, (pair, pair_std), (whole, whole_std))
        wanted = torch.tensor([self.thresholds[task] for task in self._asked(rows)])
        over = self.agreement.update(rows, chances >= wanted)
        self.last[rows] = seen
        given = self._shaped(before, after, self.best[rows], over, self.steps[rows] - self.judged_at[rows])
        self.judged_at[rows] = self.steps[rows]
        self.best[rows] = torch.maximum(self.best[rows], after)
        reward[rows] += given + config.done_reward * over.float()
        believed[rows] |= over

    def _shaped(self, before: Tensor, after: Tensor, best: Tensor, over: Tensor, passed: Tensor) -> Tensor:
        """What k changes of value are paid, ``passed`` [k] control steps after the judgement before.

        A potential is paid at the end of them, where the learner has discounted it already: that is made up for.
        """
        config, (discount, span) = self.config, self.learners
        units = passed / span
        gamma = discount**units if config.gamma is None else config.gamma
        paid = config.weight * shaped(config.shaping, before, after, best, over, gamma, config.limit)
        if config.shaping == "potential" and config.gamma is None:
            paid = paid * discount ** -(units - 1).clamp(min=0)
        return paid

    def _rewound(self, steps: Tensor) -> None:
        """A person took steps back: the value is unknown until the next judgement, which the beginning decides."""
        rows = steps > 0
        self.steps[rows] -= steps[rows].to(self.steps)
        self.judged_at[rows] = torch.minimum(self.judged_at[rows], self.steps[rows])
        self.track.variance[rows] = 1.0
        self.agreement.begin(rows)
