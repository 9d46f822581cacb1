"""The newest N rows of anything, for off-policy learners whose transitions are whole decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tensordict import TensorDict

from vla_rl.errors import UserError
from vla_rl.runtime.tensors import write_tensors

FILE = "ring.safetensors"


class Ring:
    """Rows of one layout, allocated when the first come; the oldest are overwritten.

    Args:
        capacity: rows kept.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.count, self.next = capacity, 0, 0
        self.rows: Any = None
        self._unmet = False
        """Whether what is kept was loaded, and no new rows have been held against it yet."""

    def __len__(self) -> int:
        return self.count

    def append(self, rows: TensorDict) -> None:
        """Store rows [n].

        Raises:
            UserError: they are laid out otherwise than those that are kept (a resumed run with another observation or horizon).
        """
        if self.rows is None:
            self.rows = torch.zeros_like(rows[:1].expand(self.capacity).contiguous())
        if self._unmet:
            _check_layout(self.rows, rows)
            self._unmet = False
        rows = rows[-self.capacity :]  # type: ignore[assignment]
        place = (self.next + torch.arange(len(rows))) % self.capacity
        self.rows[place] = rows
        self.next = (self.next + len(rows)) % self.capacity
        self.count = min(self.capacity, self.count + len(rows))

    def sample(self, size: int, generator: torch.Generator) -> TensorDict:
        """Rows [size], drawn with replacement."""
        return self.rows[torch.randint(self.count, (size,), generator=generator)]

    def save(self, folder: Path) -> None:
        """Whole or not at all."""
        tensors = {"place": torch.tensor([self.count, self.next])}
        if self.count:
            flat = self.rows[: self.count].flatten_keys("/")
            tensors |= {f"rows/{k}": v for k, v in flat.items()}
        remedy = "free some, or lower algorithm.capacity"
        write_tensors(folder / FILE, tensors, f"replay to {folder}", remedy=remedy)

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote; where less is kept now, the newest."""
        tensors = load_file(folder / FILE)
        self.count, self.next = tensors.pop("place").tolist()
        self.rows = None
        if self.count:
            flat = {k.removeprefix("rows/"): v for k, v in tensors.items()}
            part = TensorDict(flat, batch_size=[self.count]).unflatten_keys("/")
            if self.count != self.capacity and not self.next == self.count < self.capacity:
                # Another capacity than when it was saved: from the oldest on, as many as fit.
                part = part[(torch.arange(self.count) + self.next) % self.count][-self.capacity :]
                self.count = len(part)
                self.next = self.count % self.capacity
            self.rows = torch.zeros_like(part[:1].expand(self.capacity).contiguous())
            self.rows[: self.count] = part
        self._unmet = self.count > 0


def _check_layout(kept: TensorDict, new: TensorDict) -> None:
    """Refuse rows that do not fit, with the first key that differs."""
    shapes = [
        {key: tuple(value.shape[1:]) for key, value in rows.flatten_keys("/").items()} for rows in (kept, new)
    ]
    for key in sorted({*shapes[0], *shapes[1]}):
        before, now = (each.get(key) for each in shapes)
        if before != now:
            raise UserError(
                f"{key} of what is kept has shape {before}, of what is new {now}: the run was begun with other settings (observation, horizon); "
                "resume it with those, or begin another"
            )
