"""Where a student and its teacher part: in states that have just been played and not been learned from yet, task by task."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.policies.action_tokens import kl
from vla_rl.policies.spoken import Spoken

NAME = "disagreement"
"""Of the metric; of one task ``disagreement/INSTRUCTION``."""

BATCH = 64
"""Decisions per pass."""


def followed(there: Tensor, tokens: Tensor) -> Tensor:
    """[B, N] the words that the teacher finds likeliest, ``there`` [B, S, bins], then the student's own ``tokens`` [B, N], of which it says nothing."""
    return torch.cat([there.argmax(-1), tokens[:, there.shape[1] :]], 1)


@torch.no_grad()
def disagreement(student: Spoken, decisions: TensorDict, follows: bool) -> dict[str, Tensor]:
    """Mean over words of KL(teacher || student), nats; of all ``decisions`` [N] and of those of each instruction.

    Args:
        student: as it is now.
        decisions: with ``condition``, ``tokens`` and ``teacher`` [N, words, bins], the teacher's log-probabilities.
        follows: the teacher's words come before the next one, not the student's.
    """
    found = []
    device = next(student.network.parameters()).device
    for part in decisions.split(BATCH):
        there, tokens = part["teacher"].to(device).float(), part["tokens"].to(device)
        said = followed(there, tokens) if follows else tokens
        _, _, logits = student.evaluate(part["condition"].to(device), said)
        here = logits[:, : there.shape[1]].log_softmax(-1)
        found.append(kl(there, here).mean(1).cpu())
    apart = torch.cat(found)
    means = {NAME: apart.mean()}
    asked = student.instructions(decisions["condition"])
    for task in sorted(set(asked)):
        means[f"{NAME}/{task}"] = apart[torch.tensor([each == task for each in asked])].mean()
    return means
