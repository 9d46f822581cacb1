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
from vla_rl.policies.capabilities import Continues


class Asynchronous:
    """One action per step from a base that gives chunks and takes longer than a step to do so. Batch of one.

    The base is asked ``lead`` steps before ``horizon`` steps of the present chunk are used up, with the observation of
    that moment; its chunk takes over at the step that it has reached by then. A chunk that comes late is waited for as
    long as the old one still has actions; after that ``act`` blocks (and the robot's safety node holds the arm).

    Two chunks planned apart do not meet: the action jumps at the step where one takes over. With ``rtc`` the base is
    given what is left of the present chunk and goes on from it (real-time chunking, arXiv 2506.07339): the next
    ``lead`` actions stay as they are, the later ones are free in growing measure. ``blend`` fades any base's chunks.

    Like everything on a clock it is not a function of its explicit state alone: the plan under way is kept here.

    Args:
        base: gives chunks [1, T, A].
        horizon: steps executed of each; None = T - ``lead``, with ``rtc`` or ``blend`` T // 2 where that is less,
            so that there is something left to go on from.
        lead: steps that planning may take; None = measured, at least 1.
        rtc: the base continues its chunks.
        blend: steps of linear crossfade from the old chunk to the new one.

    Raises:
        UserError: not chunked, a horizon that leaves no time to plan, or ``rtc`` with a base that cannot.
    """

    def __init__(
        self,
        base: Policy,
        horizon: int | None = None,
        lead: int | None = None,
        *,
        rtc: bool = False,
        blend: int = 0,
    ) -> None:
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
        if not 0 <= blend < length:
            raise UserError(f"policy.blend={blend} is outside 0..{length - 1}, within the chunk of {length}")
        if rtc:
            if not isinstance(base, Continues):
                raise UserError(
                    "policy.rtc needs a policy that continues its chunks: set policy.blend instead"
                )
            base.check_continues()
        self.base, self.length, self.rtc, self.blend = base, length, rtc, blend
        self.fixed_lead = lead
        self._horizon = max(1, length // 2) if horizon is None and (rtc or blend) else horizon
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
            left = chunk[:, index:]
            delay = min(self.lead, left.shape[1])
            asked = self._pool.submit(self._ask, observation, inner, left, delay, deterministic)
            self._plan = episode, step, asked
        if self._plan is not None:
            _, asked, result = self._plan
            blocked = index >= self.length
            self.waits += int(blocked and asked < step)
            if blocked or (result.done() and step > asked):
                old = chunk[:, index:]
                chunk, inner = result.result()
                index = min(step - asked, self.length - 1)
                chunk = faded(old, chunk, index, self.blend)
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
        self, observation: Observation, inner: TensorDict, left: Tensor, delay: int, deterministic: bool
    ) -> tuple[Tensor, TensorDict]:
        began = time.monotonic()
        if self.rtc and delay:
            output, after = self.base.act_continuing(observation, inner, left, delay)  # type: ignore[attr-defined]
        else:
            output, after = self.base.act(observation, inner, deterministic=deterministic)
        self.durations.append(time.monotonic() - began)
        return output["action"], after

    def close(self) -> None:
        """End the planning thread."""
        self._pool.shutdown(wait=True)


def faded(old: Tensor, new: Tensor, index: int, steps: int) -> Tensor:
    """``new`` [1, T, A] whose next ``steps`` actions from ``index`` fade in from ``old`` [1, L, A] (next action first)."""
    steps = min(steps, old.shape[1], new.shape[1] - index)
    if steps < 1:
        return new
    share = torch.arange(1, steps + 1, dtype=new.dtype)[:, None] / (steps + 1)
    out = new.clone()
    out[:, index : index + steps] = torch.lerp(old[:, :steps], new[:, index : index + steps], share)
    return out
