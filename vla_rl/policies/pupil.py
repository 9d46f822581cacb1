"""A student beside whose exploring decisions stands what its teacher has to say of the same states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.policies.base import Observation, Policy


class Pupil:
    """Acts as the student. Subclasses say what of the teacher is kept (``ask``).

    The teacher is asked once per decision, all rows that decide at once in one batch, each time as if its episode began. Only who
    explores needs it: what has been learned is the student alone.

    Args:
        student: who acts.
        teacher: a frozen policy.
    """

    notes: tuple[str, ...] = ()
    """Names of what ``ask`` gives."""

    def __init__(self, student: Any, teacher: Policy) -> None:
        self.student, self.teacher = student, teacher
        mine, other = student.spec, teacher.spec
        self.spec = replace(
            mine,
            language=mine.language or other.language,
            state_keys=tuple(dict.fromkeys(mine.state_keys + other.state_keys)),
            image_keys=tuple(dict.fromkeys(mine.image_keys + other.image_keys)),
        )

    def initial_state(self, batch_size: int) -> TensorDict:
        """The student's."""
        return self.student.initial_state(batch_size)

    def needs_images(self, state: TensorDict) -> Tensor:
        """Where the student looks, or the teacher, who is asked with it."""
        fresh = self.teacher.initial_state(state.batch_size[0])
        return self.student.needs_images(state) | self.teacher.needs_images(fresh)

    def act(
        self, observation: Observation, state: TensorDict, *, deterministic: bool = False
    ) -> tuple[TensorDict, TensorDict]:
        """As the student; exploring with what ``ask`` gives."""
        output, state = self.student.act(observation, state, deterministic=deterministic)
        if not deterministic:
            with torch.no_grad():
                for name, value in self.ask(observation, len(output)).items():
                    output[name] = value
        return output, state

    def ask(self, observation: Observation, rows: int) -> dict[str, Any]:
        """What the teacher has to say [B, ...] at ``observation`` of ``rows`` B, by name."""
        raise NotImplementedError
