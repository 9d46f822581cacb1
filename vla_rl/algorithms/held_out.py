"""States of recordings in which a student is to stay what it began as: how far it has moved there, and a loss that draws it back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_rl.config import resolve_path
from vla_rl.data.dataset import check_dataset_for, load_episodes
from vla_rl.errors import UserError
from vla_rl.policies.action_tokens import kl
from vla_rl.policies.spoken import Spoken

BATCH = 64
"""States per pass."""


class HeldOut:
    """States of recordings, what the frozen base says there, and how likely it finds each word.

    Args:
        student: a token policy whose network learns; its base stays.
        paths: LeRobotDatasets with the cameras and states that the student reads, e.g. of tasks that are not distilled.
        states: how many of each, spread evenly over all of its steps.
        setting: of ``algorithm`` that names the data sets, for errors.

    Raises:
        UserError: no such data set, or one without what the student reads.
    """

    def __init__(
        self, student: Spoken, paths: Sequence[Path], states: int = 128, setting: str = "held_out"
    ) -> None:
        if states < 1:
            raise UserError(f"algorithm.{setting}_states={states} must be at least 1")
        self.student = student
        seen = [self._encoded(path, states) for path in paths]
        self.conditions: Any = torch.cat(seen)
        network = student.head.network
        with torch.no_grad():
            said = [network.sample(c, student.count, 0.0)["tokens"] for c in self.conditions.split(BATCH)]
            self.words = torch.cat(said)
            self.before = torch.cat([self._likely(network, part) for part in self._parts()])

    def __len__(self) -> int:
        return len(self.words)

    def _encoded(self, path: Path, states: int) -> Any:
        """What the student's networks read of one recording's states [n]."""
        spec = self.student.spec
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
        with torch.no_grad():
            return self.student.encode_tokens(observation, self.student.initial_state(len(picked)))[0]

    def _parts(self) -> tuple[Tensor, ...]:
        return torch.arange(len(self)).split(BATCH)

    def _likely(self, network: torch.nn.Module, which: Tensor) -> Tensor:
        logits = network.logits(self.conditions[which], self.words[which])  # type: ignore[operator]
        return (logits / self.student.temperature).log_softmax(-1)

    def apart(self, which: Tensor) -> Tensor:
        """KL(base || student) [B, N] in nats, of each word in the states ``which`` [B], with gradients."""
        return kl(self.before[which], self._likely(self.student.network, which))

    @torch.no_grad()
    def moved(self) -> Tensor:
        """Mean of ``apart`` over all states and words."""
        return torch.cat([self.apart(part) for part in self._parts()]).mean().cpu()


def datasets_of(setting: Any) -> list[Path]:
    """Folders that a setting names: one, or a list."""
    return [resolve_path(each) for each in ([setting] if isinstance(setting, str) else setting)]
