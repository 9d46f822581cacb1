"""A critic that runs elsewhere (``vla-rl serve critic=DIR``), with the questions of one that runs here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vla_rl.critic.model import checked_size, reference_pictures
from vla_rl.critic.trajectories import Trajectory
from vla_rl.serving.client import Client, RemoteError
from vla_rl.serving.schema import MAX_ROWS


class RemoteCritic(Client):
    """See ``Client`` for the arguments. Pictures are looked at over there: here they stay pictures until a question is asked."""

    serves = "critic"
    device = torch.device("cpu")

    def _take(self, hello: dict[str, Any]) -> None:
        try:
            self.notes = dict(hello["critic"])
        except (KeyError, TypeError, ValueError) as error:
            raise RemoteError(
                f"{self.address} answers, but not as a critic: vla-rl serve critic=DIR"
            ) from error

    def _same(self) -> Any:
        return self.notes

    def check_size(self, pictures: Tensor) -> None:
        """As ``Critic``."""
        checked_size(self.notes, pictures)

    def look(self, pictures: Tensor) -> Tensor:
        """The pictures themselves, uint8 [n, 3, H, W]."""
        self.check_size(pictures)
        return pictures

    def refer(self, reference: Trajectory) -> Tensor:
        """As ``Critic``, in pictures."""
        return reference_pictures(self.notes, reference)

    def progress(
        self, first: Tensor, second: Tensor, tasks: Sequence[str], reference: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As ``Critic``, from pictures."""
        means, deviations = [], []
        for start in range(0, len(tasks), MAX_ROWS):
            part = slice(start, start + MAX_ROWS)
            asked = {
                "first": first[part].contiguous(),
                "second": second[part].contiguous(),
                "tasks": list(tasks[part]),
            }
            reply = self._ask({"method": "progress", "reference": reference} | asked)
            means.append(reply["mean"])
            deviations.append(reply["std"])
        return torch.cat(means), torch.cat(deviations)

    def done(self, seen: Tensor, tasks: Sequence[str], reference: Tensor | None = None) -> Tensor:
        """As ``Critic``, of pictures."""
        chances = []
        for start in range(0, len(tasks), MAX_ROWS):
            part = slice(start, start + MAX_ROWS)
            asked = {"pictures": seen[part].contiguous(), "tasks": list(tasks[part]), "reference": reference}
            chances.append(self._ask({"method": "done"} | asked)["chance"])
        return torch.cat(chances)
