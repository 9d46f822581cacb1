"""Pictures of what a critic took for done: where a camera hides the thing, one look says what no threshold can."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor


class Evidence:
    """The last episodes that a critic believed in, those that were none apart: how each began, and what was taken for done.

    Args:
        keep: of either kind.
    """

    def __init__(self, keep: int = 8) -> None:
        self.begun: dict[int, Tensor] = {}
        self.judged: dict[int, Tensor] = {}
        self.kept: dict[bool, deque[Tensor]] = {true: deque(maxlen=keep) for true in (False, True)}

    def begin(self, rows: Tensor, pictures: Tensor) -> None:
        """Episodes of ``rows`` [k] begin with ``pictures`` uint8 [k, 3, H, W]."""
        self.begun |= zip(rows.tolist(), pictures.cpu().clone(), strict=True)

    def look(self, rows: Tensor, pictures: Tensor) -> None:
        """The critic has judged ``pictures`` uint8 [k, 3, H, W] of ``rows`` [k]."""
        self.judged |= zip(rows.tolist(), pictures.cpu().clone(), strict=True)

    def ended(self, row: int, true: bool) -> None:
        """The episode of ``row`` is over because the critic took the last picture for done; ``true``: it was."""
        self.kept[true].append(torch.cat([self.begun[row], self.judged[row]], dim=1))

    def sheets(self) -> dict[str, Tensor]:
        """Name -> uint8 [3, 2 H, n W]: n episodes beside each other, the beginning above; no sheet where there is none."""
        names = {False: "taken for done and not", True: "taken for done and done"}
        return {names[true]: torch.cat(list(kept), dim=2) for true, kept in self.kept.items() if kept}
