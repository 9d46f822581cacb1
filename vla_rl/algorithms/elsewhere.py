"""Learning from decisions that were made in another process: what acts assembles them, what learns takes them over."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.algorithms.decisions import Decisions


class FromDecisions:
    """The two halves of an algorithm whose experience are ``decisions``; inherited by it.

    The acting half calls ``assemble`` for each step's frames and sends what ``hand_over`` gives; the learning half gives
    that to ``take_over``. Both may be one object, which then has no use for any of this.
    """

    config: Any
    policy: Any
    decisions: Decisions
    steps: int
    _unsent = 0
    """Environment steps since the last ``hand_over``."""

    @property
    def discount(self) -> tuple[float, int]:
        """Of values: gamma, and the control steps that it is of: a decision's."""
        return self.config.gamma, self.policy.horizon

    def assemble(self, frames: TensorDict, rows: Tensor) -> None:
        """Take frames of the decisions that ``policy`` made, to hand over."""
        self.decisions.observe(frames, rows)
        count = int((~frames["final"]).sum())
        self.steps += count
        self._unsent += count

    def observe(self, frames: TensorDict, rows: Tensor) -> None:
        """Take frames of the decisions that ``policy`` made, and learn from them here."""
        self.assemble(frames, rows)
        self._stored()

    def hand_over(self) -> tuple[TensorDict | None, Tensor, int]:
        """Decisions that are over [N] with their rows [N], and the environment steps since the last time."""
        rows = self.decisions.rows_over()
        steps, self._unsent = self._unsent, 0
        return self.decisions.pop(), rows, steps

    def take_over(self, decisions: TensorDict | None, rows: Tensor, steps: int) -> None:
        """Learn from what another's ``hand_over`` gave; ``rows`` [N] are among all rows here."""
        if decisions is not None:
            self.decisions.receive(decisions, rows)
        self.steps += steps
        self._stored()

    def _stored(self) -> None:
        """``decisions`` has more than before."""

    def interrupt(self, rows: Tensor | None = None) -> None:
        """Nothing follows the newest decisions of ``rows`` [k] (None: of all): whoever played them is gone."""
        self.decisions.interrupt(rows)

    def reached(self) -> dict[str, int]:
        """What ``reach`` of the acting half has to know: an attribute each."""
        return {"steps": self.steps}

    def reach(self, **counts: int) -> None:
        """Be where the learning half is, whose ``reached`` these are: others act too."""
        self.be_at(**{name: max(counts[name], had) for name, had in self.reached().items()})

    def be_at(self, **counts: int) -> None:
        """Be at these counts (of ``reached``) of all who collect, of whose decisions this learner may have a part."""
        for name, count in counts.items():
            setattr(self, name, count)

    def reseed(self, seed: int) -> None:
        """Draw other batches and noise than a learner of the same seed beside this one."""
        for place, generator in enumerate(self._generators().values()):
            generator.manual_seed(seed + place)

    def _generators(self) -> dict[str, torch.Generator]:
        """By name, as checkpoints have them."""
        raise NotImplementedError


def learns_from_decisions(algorithm: Any) -> bool:
    """Whether it is given whole decisions, not frames, where it learns elsewhere than it acts."""
    return isinstance(algorithm, FromDecisions)
