"""A student beside whose decisions stands what a teacher would have done in its place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vla_rl.errors import UserError
from vla_rl.policies.base import Observation, Policy
from vla_rl.policies.denoised import Denoised
from vla_rl.policies.pupil import Pupil


class Advised(Pupil):
    """Exploring decisions also have ``advice`` and ``advice_std`` [B, S, A], in the student's normalised units.

    A chunked teacher plans anew at each of them. S is the length of what it gives, at most what the student carries out.

    Args:
        student: chunks of it are carried out.
        teacher: any policy, with chunks or single actions.
        samples: of the teacher's action per state; ``advice`` is their mean. 1 = its deterministic action, deviation 0.

    Raises:
        UserError: another action dimension, or a student whose actions are not linear in what its network gives.
    """

    def __init__(self, student: Denoised, teacher: Policy, samples: int = 1) -> None:
        if samples < 1:
            raise UserError(f"algorithm.samples={samples} must be at least 1")
        super().__init__(student, teacher)
        mine, other = student.spec, teacher.spec
        if mine.action_dim != other.action_dim:
            raise UserError(
                f"teacher: it gives {other.action_dim}-dimensional actions, the student {mine.action_dim}-dimensional ones"
            )
        self.samples = samples
        self.length = min(max(1, other.chunk_length), student.executed)
        self.centre, self.scale = (part[: self.length] for part in units_of(student))

    def ask(self, observation: Observation, rows: int) -> dict[str, Any]:
        """Mean and standard deviation of the teacher's action."""
        many = _repeated(observation, self.samples) if self.samples > 1 else observation
        fresh = self.teacher.initial_state(rows * self.samples)
        output, _ = self.teacher.act(many, fresh, deterministic=self.samples == 1)
        action = output["action"]
        action = action if action.dim() == 3 else action[:, None]
        action = (action[:, : self.length].to(self.centre) - self.centre) / self.scale
        drawn = action.unflatten(0, (rows, self.samples))
        return {"advice": drawn.mean(1), "advice_std": drawn.std(1, correction=0)}


def units_of(student: Denoised) -> tuple[Tensor, Tensor]:
    """(centre, scale) [H, A]: an action in environment units is centre + scale times what the network gives.

    Raises:
        UserError: its processors do something else.
    """
    device = next(student.head.network.parameters()).device
    below, middle, above = (
        student.base.actions_of(torch.full((1, *student.head.shape), value, device=device))[0]  # type: ignore[attr-defined]
        for value in (-1.0, 0.0, 1.0)
    )
    scale = above - middle
    if not torch.allclose(middle - below, scale, rtol=1e-3, atol=1e-6) or (scale == 0).any():
        raise UserError(
            "the student's actions are not linear in its network's output: its processors clip or bend them"
        )
    return middle[: student.executed], scale[: student.executed]


def _repeated(observation: Observation, times: int) -> Observation:
    """Every row ``times`` times, one after the other."""
    return {
        key: value.repeat_interleave(times, 0)
        if isinstance(value, Tensor)
        else [each for each in value for _ in range(times)]
        for key, value in observation.items()
    }
