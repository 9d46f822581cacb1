"""Plan the next chunk while the present one is carried out, so that a slow base does not stop a robot."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.errors import UserError
from vla_rl.policies.base import Observation, Policy


class Asynchronous:
    """One action per step from a base that gives chunks and takes longer than a step to do so. Batch of one.

    The base is asked ``lead`` steps before ``horizon`` steps of the present chunk are used up, with the observation of
    that moment; its chunk takes over at the step that it has reached by then. A chunk that comes late is waited for as
    long as the old one still has actions; after that ``act`` blocks (and the robot's safety node holds the arm).

    Like everything on a clock it is not a function of its explicit state alone: the plan under way is kept here.

    Args:
        base: gives chunks [1, T, A].
        horizon: steps executed of each; None = T - ``lead``.
        lead: steps that planning may take; None = measured, at least 1.

    Raises:
        UserError: not chunked, or a horizon that leaves no time to plan.
    """

    def __init__(self, base: Policy, horizon: int | None = None, lead: int | None = None) -> None:
        length = base.spec.chunk_length
        if not length:
            raise UserError(
                "asynchronous planning applies to policies that give action chunks; this one gives single actions"
            )
        if lead is not None and not 1 <= lead < length:
            raise UserError(f"policy.lead={lead} is outside 1..{length - 1}, within the chunk of {length}")
        if horizon is not None and not 1 <= horizon <= length - (lead or 1):
            raise UserError(
                f"policy.horizon={horizon} of a chunk of {length} leaves no step to plan in: at most {length - (lead or 1)}"
            )
        self.base, self.length = base, length
        self.fixed_lead, self._horizon = lead, horizon
        self.spec = replace(base.spec, chunk_length=0)
        self.durations: list[float] = []
        """Seconds that each plan took."""
        self.periods: deque[float] = deque(maxlen=10)
        """Seconds between the newest steps."""
        self._stepped = math.inf
        self.waits = 0
        """Steps at which a plan had to be waited for."""
        self._pool = ThreadPoolExecutor(1, "vla_rl-plan")
        self._begun = 0
        self._plan: tuple[int, int, Future] | None = None  # episode, step of its observation, result

    @property
    def lead(self) -> int:
        """Steps before the end at which the next plan begins."""
        if self.fixed_lead is not None:
            return self.fixed_lead
        if not self.periods:
            return 1
        slowest = max(self.durations[-5:], default=0.0)
        return min(self.length - 1, max(1, math.ceil(slowest / max(1e-6, statistics.median(self.periods)))))

    @property
    def horizon(self) -> int:
        """Steps executed of each chunk."""
        most = self.length - self.lead
        return most if self._horizon is None else min(self._horizon, most)

    def initial_state(self, batch_size: int) -> TensorDict:
        """No chunk yet; ``episode`` tells a plan of another episode apart."""
        if batch_size != 1:
            raise UserError(f"asynchronous planning is for one robot: batch of {batch_size}")
        self._begun += 1
        parts: dict[str, Any] = {
            "chunk": torch.zeros(1, self.length, self.spec.action_dim),
            "index": torch.full((1,), self.length),  # of the next action
            "step": torch.zeros(1, dtype=torch.long),
            "episode": torch.full((1,), self._begun),
            "base": self.base.initial_state(1),
        }
        return TensorDict(parts, batch_size=[1])

    def needs_images(self, state: TensorDict) -> Tensor:
        """When a plan begins at this step, if the base looks at all."""
        return torch.tensor([self._asking(state)]) & self.base.needs_images(state["base"])

    def _asking(self, state: TensorDict) -> bool:
        under_way = self._plan is not None and self._plan[0] == int(state["episode"])
        return not under_way and int(state["index"]) >= self.horizon

    def act(
        self, observation: Observation, state: TensorDict, *, deterministic: bool = False
    ) -> tuple[TensorDict, TensorDict]:
        """``action`` [1, A] and ``chunk_index`` [1]."""
        now = time.monotonic()
        if now > self._stepped and int(state["step"]):
            self.periods.append(now - self._stepped)
        self._stepped = now
        chunk, inner = state["chunk"], state["base"]
        index, step, episode = int(state["index"]), int(state["step"]), int(state["episode"])
        if self._plan is not None and self._plan[0] != episode:
            self._plan[2].exception()  # of an episode that is over: let it end, use nothing of it
            self._plan = None
        if self._asking(state):
            self._plan = episode, step, self._pool.submit(self._ask, observation, inner, deterministic)
        if self._plan is not None:
            _, asked, result = self._plan
            blocked = index >= self.length
            self.waits += int(blocked and asked < step)
            if blocked or (result.done() and step > asked):
                chunk, inner = result.result()
                index = min(step - asked, self.length - 1)
                self._plan = None
        parts = {
            "chunk": chunk,
            "index": torch.full((1,), index + 1),
            "step": torch.full((1,), step + 1),
            "episode": state["episode"],
            "base": inner,
        }
        output = TensorDict(
            {"action": chunk[:, index], "chunk_index": torch.full((1,), index)}, batch_size=[1]
        )
        return output, TensorDict(parts, batch_size=[1])

    def _ask(
        self, observation: Observation, inner: TensorDict, deterministic: bool
    ) -> tuple[Tensor, TensorDict]:
        began = time.monotonic()
        output, after = self.base.act(observation, inner, deterministic=deterministic)
        self.durations.append(time.monotonic() - began)
        return output["action"], after

    def close(self) -> None:
        """End the planning thread."""
        self._pool.shutdown(wait=True)
