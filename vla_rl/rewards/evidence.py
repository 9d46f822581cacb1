"""Pictures of what a critic took for done, and of what it missed: where a camera hides the thing, one look says what no threshold can."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

NAMES = {
    (True, False): "taken for done and not",
    (True, True): "taken for done and done",
    (False, True): "done and not taken for it",
}
"""Sheets, by what the critic believed at an episode's end and what was true."""


class Evidence:
    """The last episodes that a critic believed in, those that were none apart, and those that it missed.

    Of each how it began, and below that what was taken for done; of the missed the first picture that was judged once it was done.

    Args:
        keep: of each kind.
    """

    def __init__(self, keep: int = 8) -> None:
        self.begun: dict[int, Tensor] = {}
        self.judged: dict[int, Tensor] = {}
        self.done: dict[int, Tensor] = {}
        self.kept: dict[str, deque[Tensor]] = {name: deque(maxlen=keep) for name in NAMES.values()}

    def begin(self, rows: Tensor, pictures: Tensor) -> None:
        """Episodes of ``rows`` [k] begin with ``pictures`` uint8 [k, 3, H, W]."""
        for row, picture in zip(rows.tolist(), pictures.cpu().clone(), strict=True):
            self.begun[row] = picture
            self.done.pop(row, None)

    def look(self, rows: Tensor, pictures: Tensor, true: Tensor) -> None:
        """The critic has judged ``pictures`` uint8 [k, 3, H, W] of ``rows`` [k]; ``true`` bool [k]: the task had been done by then."""
        for row, picture, done in zip(rows.tolist(), pictures.cpu().clone(), true.tolist(), strict=True):
            self.judged[row] = picture
            if done:
                self.done.setdefault(row, picture)

    def ended(self, row: int, believed: bool, true: bool) -> None:
        """The episode of ``row`` is over, perhaps because the critic took the last picture for done."""
        shown = self.judged if believed else self.done
        if (name := NAMES.get((believed, true))) and row in shown:
            self.kept[name].append(torch.cat([self.begun[row], shown[row]], dim=1))

    def sheets(self) -> dict[str, Tensor]:
        """Name -> uint8 [3, 2 H, n W]: n episodes beside each other, the beginning above; no sheet where there is none."""
        return {name: torch.cat(list(kept), dim=2) for name, kept in self.kept.items() if kept}
