"""Chunks carried out open loop, in the middle of which somebody looks again, without deciding anything."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.policies.advised import Shown
from vla_rl.policies.base import Observation
from vla_rl.policies.open_loop import OpenLoop, take


class Watched(OpenLoop):
    """What the teacher would do is also asked within chunks: it costs pictures, but none of the student's words.

    Args:
        base: a student beside its teacher.
        horizon: H, steps executed of each chunk.
        every: it is asked at every so manieth step of a chunk.
        on_decision: as of ``OpenLoop``.
        on_between: called with the rows [k] that are within a chunk, how manieth of its looks this is [k], counted from 0, and
            what ``base.noted`` gives, unless deterministic.
    """

    def __init__(
        self,
        base: Shown,
        horizon: int,
        every: int,
        on_decision: Callable[[Tensor, TensorDict], None],
        on_between: Callable[[Tensor, Tensor, TensorDict], None],
    ) -> None:
        super().__init__(base, horizon, on_decision=on_decision)
        self.every, self.on_between = every, on_between

    def _within(self, state: TensorDict) -> Tensor:
        """[B] rows that look again."""
        index = state["index"]
        return (index < self.horizon) & (index > 0) & (index % self.every == 0)

    def needs_images(self, state: TensorDict) -> Tensor:
        """As ``OpenLoop``, and where somebody looks again."""
        again = self._within(state) & self.base.needs_images(state["base"])
        return super().needs_images(state) | again

    def act(
        self, observation: Observation, state: TensorDict, *, deterministic: bool = False
    ) -> tuple[TensorDict, TensorDict]:
        """As ``OpenLoop``."""
        rows = self._within(state).nonzero().flatten()
        if len(rows) and not deterministic:
            assert isinstance(self.base, Shown)
            part = take(observation, rows, self.spec.state_keys + self.spec.image_keys)
            with torch.no_grad():
                noted = self.base.noted(part, state["base"][rows])
            self.on_between(rows, state["index"][rows] // self.every - 1, noted)
        return super().act(observation, state, deterministic=deterministic)


def looks(horizon: int, every: int) -> int:
    """How often ``Watched`` looks again within a chunk."""
    return (horizon - 1) // every if every else 0
