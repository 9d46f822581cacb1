"""What an on-policy learner of action chunks remembers: whole decisions, row by row, until the next update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tensordict import TensorDict
from torch import Tensor

from vla_rl.keys import ELAPSED
from vla_rl.returns import gae
from vla_rl.runtime.tensors import write_tensors

FILE = "decisions.safetensors"


class Decisions:
    """Chunks that were decided and carried out, with what came of them.

    ``decided`` is told of every fresh chunk before its first step; ``observe`` gets the collector's frames.

    Args:
        rows: environment rows B.
        keys: observation keys to keep.
        carry: of what was decided, the keys that a decision also keeps of the next one (``next_condition`` ...); zeros
            where the episode ended.
        limit_ends: a time limit ends an episode for good, as a failure: nothing is expected after it, and observations have
            ``ELAPSED``, without which nobody could expect what is right.
        number: of the episode under way in a row, where decisions wait for what others of their group come to
            (``settle``); None = they do not.
    """

    def __init__(
        self,
        rows: int,
        keys: Sequence[str],
        carry: Sequence[str] = (),
        number: Callable[[int], int] | None = None,
        limit_ends: bool = False,
    ) -> None:
        self.between: tuple[str, ...] = ()
        """Of what was decided, the keys that ``noticed`` is told of within decisions too: their field ``between``, with ``there``."""
        self.places = 0
        """In how many states within each decision."""
        self.limit_ends = limit_ends
        self.keys = tuple(key for key in keys if key != ELAPSED)
        self.carry, self.number = tuple(carry), number
        self.settled = 0
        """Decisions whose advantage is known."""
        self._elapsed = [0] * rows
        self._fresh: dict[int, TensorDict] = {}
        self._open: dict[int, TensorDict] = {}
        self._closed: list[list[TensorDict]] = [[] for _ in range(rows)]

    def __len__(self) -> int:
        """Decisions that are over."""
        return sum(len(row) for row in self._closed)

    def decided(self, rows: Tensor, output: TensorDict) -> None:
        """Chunks decided for ``rows`` [k]; of ``output`` everything but the action is kept."""
        kept = output.exclude("action")
        for index, row in enumerate(rows.tolist()):
            self._fresh[row] = kept[index]  # type: ignore[assignment]

    def noticed(self, rows: Tensor, places: Tensor, what: TensorDict) -> None:
        """The keys ``between`` [k] in states within the decisions under way in ``rows`` [k], each of them at its ``places`` [k]."""
        for index, (row, place) in enumerate(zip(rows.tolist(), places.tolist(), strict=True)):
            if (current := self._open.get(row)) is not None:
                between: Any = current["between"]
                between["there"][place] = True
                for key, value in what[index].items(True, True):
                    between[key][place] = value

    def observe(self, frames: TensorDict, rows: Tensor) -> None:
        """Frames of the collector (its docstring has their format)."""
        over = frames["terminated"] | frames["truncated"] if self.limit_ends else frames["terminated"]
        final, terminated = frames["final"].tolist(), over.tolist()
        taken = frames["intervention"].tolist()
        forget = frames["forget"].tolist() if "forget" in frames.keys() else [0] * len(final)
        for index, row in enumerate(rows.tolist()):
            fresh = self._fresh.pop(row, None)
            if fresh is not None or final[index]:
                now: Any = frames["observation"][index]
                seen = now.select(*self.keys)
                if self.limit_ends:
                    seen[ELAPSED] = torch.tensor([float(self._elapsed[row])])
                self._close(row, seen, final[index], fresh)
                if fresh is not None and not final[index]:
                    self._open[row] = self._opened(fresh, seen)
            self._elapsed[row] = 0 if final[index] else self._elapsed[row] + 1 - int(forget[index])
            current = self._open.get(row)
            if current is None or final[index]:
                continue
            current["reward"] += frames["reward"][index]
            current["terminated"] |= terminated[index]
            current["own"] &= not taken[index]
            if forget[index]:  # rewound: what this chunk led to did not happen
                del self._open[row]
                self._end(row)

    def _opened(self, fresh: TensorDict, seen: TensorDict) -> TensorDict:
        flags = {"reward": torch.tensor(0.0), "terminated": torch.tensor(False), "own": torch.tensor(True)}
        parts: dict[str, Any] = {**dict(fresh.items()), "observation": seen.clone(), **flags}
        if self.places:
            # Without batch dimensions, as what comes back from a file or another process.
            leaves = fresh.select(*self.between).flatten_keys("/").items()
            empty: dict[str, Any] = {key: value.new_zeros(self.places, *value.shape) for key, value in leaves}
            there = torch.zeros(self.places, dtype=torch.bool)
            parts["between"] = TensorDict(empty | {"there": there}, batch_size=[]).unflatten_keys("/")
        return TensorDict(parts, batch_size=[])

    def _end(self, row: int) -> None:
        """Nothing follows the newest decision of a row."""
        if self._closed[row]:
            self._closed[row][-1]["ended"] = torch.tensor(True)

    def _close(self, row: int, seen: TensorDict, final: bool, fresh: TensorDict | None) -> None:
        decision = self._open.pop(row, None)
        if decision is None:
            return
        decision["next_observation"] = seen
        decision["ended"] = torch.tensor(final)
        for key in self.carry:
            there = fresh is not None and not final
            decision[f"next_{key}"] = fresh[key] if there else torch.zeros_like(decision[key])  # type: ignore[index]
        if self.number is not None:
            decision["number"] = torch.tensor(self.number(row))
            decision["advantage"] = torch.tensor(torch.nan)
        self._closed[row].append(decision)

    def settle(self, row: int, number: int, advantage: float | None) -> None:
        """Give the decisions of an episode their ``advantage``; None = forget them."""
        kept = []
        for decision in self._closed[row]:
            if int(decision["number"]) == number:
                if advantage is None:
                    continue
                decision["advantage"] = torch.tensor(advantage)
                self.settled += 1
            kept.append(decision)
        self._closed[row] = kept

    def take_settled(self) -> TensorDict:
        """Decisions with an ``advantage`` as a batch [N]; they are forgotten here, the others are not."""
        known: Any = [d for row in self._closed for d in row if not d["advantage"].isnan()]
        self._closed = [[d for d in row if d["advantage"].isnan()] for row in self._closed]
        self.settled = 0
        batch: Any = torch.stack(known)
        return batch

    def over(self) -> TensorDict | None:
        """All that are over, in the order of rows [N]. None: there are none."""
        if not len(self):
            return None
        batch: Any = torch.stack([d for row in self._closed for d in row])
        return batch

    def pop(self) -> TensorDict | None:
        """What ``over`` gives; they are forgotten here."""
        batch = self.over()
        self._closed = [[] for _ in self._closed]
        return batch

    def rows_over(self) -> Tensor:
        """[N] the row of each decision in ``over``."""
        return torch.tensor([row for row, own in enumerate(self._closed) for _ in own], dtype=torch.long)

    def receive(self, decisions: TensorDict, rows: Tensor) -> None:
        """Decisions [N] that are over, made elsewhere in the rows ``rows`` [N]; each row's in the order in which they were made."""
        for decision, row in zip(decisions.unbind(0), rows.tolist(), strict=True):
            self._closed[row].append(decision)

    def interrupt(self, rows: Tensor | None = None) -> None:
        """Nothing follows the newest decision of ``rows`` [k] (None: of all), and what is under way there is forgotten."""
        for row in range(len(self._closed)) if rows is None else rows.tolist():
            self._fresh.pop(row, None)
            self._open.pop(row, None)
            self._elapsed[row] = 0
            self._end(row)

    def take(self, value: Any, gamma: float, lam: float, scale: float = 1.0) -> TensorDict:
        """All that are over, as a batch [N] with ``advantage``, ``value`` and ``return`` [N]; they are forgotten here.

        Args:
            value: observations [N] -> values [N].
            gamma: discount per decision.
            lam: GAE's lambda.
            scale: the rewards are multiplied by this.
        """
        lengths = [len(row) for row in self._closed]
        batch = self.pop()
        assert batch is not None
        batch["value"] = value(batch["observation"])
        columns = {
            "reward": batch["reward"] * scale,
            "value": batch["value"],
            "next_value": value(batch["next_observation"]),
            "terminated": batch["terminated"],
            "ended": batch["ended"],
        }
        padded = {name: _pad(column, lengths) for name, column in columns.items()}
        advantage = gae(**padded, gamma=gamma, lam=lam)
        batch["advantage"] = torch.cat([advantage[:n, i] for i, n in enumerate(lengths)])
        batch["return"] = batch["advantage"] + batch["value"]
        return batch

    def rewards(self) -> list[list[tuple[float, bool]]]:
        """Of each row, reward and whether the episode ended, decision by decision."""
        return [[(float(d["reward"]), bool(d["ended"])) for d in row] for row in self._closed]

    def save(self, folder: Path) -> None:
        """Those that are over; the collector has closed the others."""
        lengths = [len(row) for row in self._closed]
        tensors = {"lengths": torch.tensor(lengths)}
        if (stacked := self.over()) is not None:
            tensors |= dict(stacked.flatten_keys("/").items())
        write_tensors(folder / FILE, tensors, f"decisions to {folder}")

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote."""
        tensors = load_file(folder / FILE)
        lengths = tensors.pop("lengths").tolist()
        self._fresh.clear()
        self._open.clear()
        self._elapsed = [0] * len(lengths)
        self._closed = [[] for _ in lengths]
        if not tensors:
            return
        stacked: Any = TensorDict(tensors, batch_size=[sum(lengths)]).unflatten_keys("/")
        parts = iter(stacked.unbind(0))
        self._closed = [[next(parts) for _ in range(n)] for n in lengths]
        if self.number is not None:
            self.settled = sum(not d["advantage"].isnan() for row in self._closed for d in row)


def _pad(column: Tensor, lengths: list[int]) -> Tensor:
    """[N] row after row -> [T, B]; beyond a row's end stand zeros."""
    parts = column.split(lengths)
    return torch.nn.utils.rnn.pad_sequence(list(parts))
