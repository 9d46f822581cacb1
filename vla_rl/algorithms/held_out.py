"""Forgetting, seen while it happens: how far a student has moved from what it began as, in recorded states."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vla_rl.data.dataset import check_dataset_for, load_episodes
from vla_rl.errors import UserError
from vla_rl.policies.action_tokens import kl
from vla_rl.policies.spoken import Spoken

BATCH = 64
"""States per pass."""


class HeldOut:
    """States of a recording, what the frozen base says there, and how likely it finds each word.

    Args:
        student: a token policy whose network learns; its base stays.
        path: LeRobotDataset with the cameras and states that the student reads, e.g. of tasks that are not distilled.
        states: how many, spread evenly over all of its steps.

    Raises:
        UserError: no such data set, or one without what the student reads.
    """

    def __init__(self, student: Spoken, path: Path, states: int = 128) -> None:
        if states < 1:
            raise UserError(f"algorithm.held_out_states={states} must be at least 1")
        spec = student.spec
        check_dataset_for(spec, path)
        episodes = load_episodes(path, images=list(spec.image_keys))
        places = [(e, step) for e, episode in enumerate(episodes) for step in range(episode.length)]
        at = torch.linspace(0, len(places) - 1, min(states, len(places))).round().long().tolist()
        picked = [places[i] for i in at]
        observation = {
            key: torch.stack([episodes[e].data[key][step] for e, step in picked])
            for key in spec.state_keys + spec.image_keys
        }
        observation["task"] = [episodes[e].task for e, _ in picked]  # type: ignore[assignment]
        self.student = student
        with torch.no_grad():
            conditions, _ = student.encode_tokens(observation, student.initial_state(len(picked)))
            self.conditions = list(conditions.split(BATCH))
            network = student.head.network
            said = [network.sample(c, student.count, 0.0)["tokens"] for c in self.conditions]
            self.words = said
            self.before = [self._likely(network, i) for i in range(len(said))]

    def _likely(self, network: torch.nn.Module, part: int) -> Tensor:
        logits = network.logits(self.conditions[part], self.words[part])  # type: ignore[operator]
        return (logits / self.student.temperature).log_softmax(-1)

    @torch.no_grad()
    def moved(self) -> Tensor:
        """Mean over states and words of KL(base || student), nats."""
        parts = [kl(before, self._likely(self.student.network, i)) for i, before in enumerate(self.before)]
        return torch.cat(parts).mean().cpu()
