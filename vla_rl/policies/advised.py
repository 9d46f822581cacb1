"""A student beside whose decisions stands what a teacher would have done in its place: any teacher that acts."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.errors import UserError
from vla_rl.policies.action_tokens import around
from vla_rl.policies.base import Observation, Policy
from vla_rl.policies.denoised import Denoised
from vla_rl.policies.open_loop import take
from vla_rl.policies.pupil import Pupil
from vla_rl.policies.spoken import Spoken


class Advised(Pupil):
    """Exploring decisions also have ``advice`` and ``advice_std`` [B, S, A], in the student's normalised units.

    A chunked teacher plans anew at each of them. S is the length of what it gives, at most what the student carries out.

    Args:
        student: chunks of it are carried out.
        teacher: any policy, with chunks or single actions.
        units: (centre, scale) [H, A] of the student's normalised units.
        samples: of the teacher's action per state; ``advice`` is their mean. 1 = its deterministic action, deviation 0.

    Raises:
        UserError: another action dimension.
    """

    notes: tuple[str, ...] = ("advice", "advice_std")

    def __init__(
        self, student: Denoised | Spoken, teacher: Policy, units: tuple[Tensor, Tensor], samples: int = 1
    ) -> None:
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
        self.centre, self.scale = (part[: self.length] for part in units)
        self.moves = self.scale.abs() > 1e-8
        """[S, A] of what the student's network changes at all: not numbers that never varied in what it was cloned from."""

    def ask(self, observation: Observation, rows: int) -> dict[str, Any]:
        """Mean and standard deviation of the teacher's action."""
        if self.samples > 1:
            many, seen = torch.arange(rows).repeat_interleave(self.samples), self.teacher.spec
            observation = take(observation, many, seen.state_keys + seen.image_keys)
        fresh = self.teacher.initial_state(rows * self.samples)
        output, _ = self.teacher.act(observation, fresh, deterministic=self.samples == 1)
        action = output["action"]
        action = action if action.dim() == 3 else action[:, None]
        action = (action[:, : self.length].to(self.centre) - self.centre) / self.scale
        drawn = action.where(self.moves, 0.0).unflatten(0, (rows, self.samples))
        return {"advice": drawn.mean(1), "advice_std": drawn.std(1, correction=0)}


class Shown(Advised):
    """A token student whose teacher has no words: its action becomes a Gaussian over the student's bins.

    Args:
        student: who speaks.
        teacher: any policy, with chunks or single actions.
        samples: as ``Advised``; their deviation widens the Gaussian.
        blur: its least standard deviation, in the student's normalised units (words cover -1..1).

    Raises:
        UserError: another action dimension, a blur that is not positive, or a student with FAST words.
    """

    def __init__(self, student: Spoken, teacher: Policy, samples: int = 1, blur: float = 0.1) -> None:
        if blur <= 0:
            raise UserError(f"algorithm.teacher_blur={blur} must be above 0")
        if student.words.end is not None:
            raise UserError(
                "teacher: it has no words, and the student's FAST words stand for no single number: teach with a token policy "
                "of the student's vocabulary, or distil into a student with bins"
            )
        super().__init__(student, teacher, units_of_words(student), samples)
        self.bins, self.blur = student.head.bins, blur

    def noted(self, observation: Observation, state: TensorDict) -> TensorDict:
        """``condition`` and the ``notes`` [B] of a state in which nothing is decided."""
        condition, _ = self.student.encode_tokens(observation, state)
        rows = len(condition)
        return TensorDict({"condition": condition, **self.ask(observation, rows)}, batch_size=[rows])

    def teach(self, decisions: TensorDict) -> Tensor:
        """[B, S A, bins] log-probabilities of the first words of the decisions [B] with ``advice`` and ``advice_std``."""
        advice, std = (torch.flatten(decisions[name], 1) for name in self.notes)  # pyright: ignore[reportArgumentType]
        return around(advice, std.clamp(min=self.blur), self.bins)


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
    if not torch.allclose(middle - below, scale, rtol=1e-3, atol=1e-6):
        raise UserError(
            "the student's actions are not linear in its network's output: its processors clip or bend them"
        )
    return middle[: student.executed], scale[: student.executed]


def units_of_words(student: Spoken) -> tuple[Tensor, Tensor]:
    """(centre, scale) [H, A]: an action in environment units is centre + scale times the number that its word stands for."""
    head = student.head
    words = torch.stack([torch.full((head.count,), word) for word in (0, head.bins - 1)])
    low, high = student.actions_of_tokens(words)
    scale = (high - low) / 2 * head.bins / (head.bins - 1)  # words stand for the middles of their bins
    return ((low + high) / 2)[: student.executed], scale[: student.executed]
