"""A student whose words a frozen teacher scores, each from what it would have seen itself."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.errors import UserError
from vla_rl.policies.base import Observation, Policy
from vla_rl.policies.capabilities import Tokens
from vla_rl.policies.pupil import Pupil
from vla_rl.policies.spoken import Spoken


def has_words(policy: Policy) -> bool:
    """Whether a policy acts by words that can be scored."""
    try:  # LeRobot policies of other types refuse their token_head
        return isinstance(policy, Tokens) and bool(policy.token_head)
    except UserError:
        return False


class Taught(Pupil):
    """Exploring decisions also have ``lesson``, what the teacher needs to score them.

    Args:
        student: who speaks.
        teacher: a policy with the ``Tokens`` capability.

    Raises:
        UserError: a teacher whose words mean other actions than the student's.
    """

    notes = ("lesson",)

    def __init__(self, student: Spoken, teacher: Policy) -> None:
        assert isinstance(teacher, Tokens)
        super().__init__(student, teacher)
        ours, theirs = student.head, teacher.token_head
        for name in ("bins", "shape"):
            if getattr(ours, name) != getattr(theirs, name):
                raise UserError(
                    f"teacher: its {name} are {getattr(theirs, name)}, the student's {getattr(ours, name)}: "
                    "distil between policies of one vocabulary and chunk"
                )
        if ours.words.identity != theirs.words.identity:
            raise UserError(
                "teacher: its FAST vocabulary is another: distil between policies of one vocabulary"
            )
        words = ours.tokens_of(torch.tensor([-1.0, 1.0])[:, None, None].expand(2, *ours.shape))
        here, there = student.actions_of_tokens(words), teacher.actions_of_tokens(words)
        apart = (here - there).abs().amax((0, 1)) / (here[1] - here[0]).abs().amax(0).clamp(min=1e-9)
        if apart.max() > 1 / ours.bins:
            worst = int(apart.argmax())
            raise UserError(
                f"teacher: the same word is another action: number {worst} goes from {float(there[0, 0, worst]):.4g} to "
                f"{float(there[1, 0, worst]):.4g} there, {float(here[0, 0, worst]):.4g} to {float(here[1, 0, worst]):.4g} in "
                "the student: train both with the same normalisation statistics"
            )

    def ask(self, observation: Observation, rows: int) -> dict[str, Any]:
        """``lesson``, the teacher's condition."""
        fresh = self.teacher.initial_state(rows)
        lesson, _ = self.teacher.encode_tokens(observation, fresh)  # type: ignore[attr-defined]
        return {"lesson": lesson}

    @torch.no_grad()
    def teach(self, decisions: TensorDict) -> Tensor:
        """[B, N, bins] the teacher's log-probabilities at every word of the decisions [B], float16.

        Args:
            decisions: with ``lesson`` and ``tokens``.
        """
        network = self.teacher.token_head.network  # type: ignore[attr-defined]
        device = next(network.parameters()).device
        logits = network.logits(decisions["lesson"].to(device), decisions["tokens"].to(device))
        return (logits / self.student.temperature).log_softmax(-1).half()
