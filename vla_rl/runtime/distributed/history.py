"""Both ends of weight synchronisation: what has been published, and a copy that follows it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch

from vla_rl.runtime.distributed.sparse import (
    NOTHING,
    CorruptDelta,
    Delta,
    StaleWeights,
    Weights,
    apply,
    difference,
)


class Published:
    """Versions of a model's weights, numbered one after the other.

    Args:
        keep: changes kept; whoever is further behind gets a snapshot.
        first: number of the first version.
    """

    def __init__(self, keep: int = 32, first: int = 0) -> None:
        self.version, self.first = NOTHING, first
        self.weights: Weights | None = None
        self.changes: deque[Delta] = deque(maxlen=keep)
        self._snapshot: Delta | None = None

    def publish(self, weights: Weights) -> int:
        """The next version; returns its number."""
        copied = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
        number = self.first if self.weights is None else self.version + 1
        if self.weights is not None:
            self.changes.append(difference(self.weights, copied, self.version, number))
        self.weights, self.version, self._snapshot = copied, number, None
        return self.version

    def since(self, version: int) -> list[Delta]:
        """What brings ``version`` (``NOTHING``: a newcomer) up to date: changes in order, or one snapshot if that is less."""
        if version == self.version or self.weights is None:
            return []
        missed = [change for change in self.changes if change.base >= version]
        if version != NOTHING and missed and missed[0].base == version:
            if sum(change.size for change in missed) < self.snapshot().size:
                return missed
        return [self.snapshot()]

    def snapshot(self) -> Delta:
        """All of the present version."""
        assert self.weights is not None
        if self._snapshot is None:
            self._snapshot = difference(None, self.weights, NOTHING, self.version)
        return self._snapshot


class Followed:
    """A copy of somebody's ``Published`` weights.

    Args:
        weights: of the same model; its values do not count until the first ``catch_up``.
        ask: version -> packed deltas, of the other end.
        tries: before a transfer that arrives damaged every time is given up.
    """

    def __init__(self, weights: Weights, ask: Callable[[int], list[bytes]], tries: int = 3) -> None:
        self.weights = {k: v.detach().cpu().contiguous().clone() for k, v in weights.items()}
        self.ask, self.tries, self.version = ask, tries, NOTHING
        self.refetched = 0
        """Deltas that had to be asked for again."""

    def catch_up(self) -> bool:
        """Take what is new; True when there was something.

        Raises:
            CorruptDelta: damaged however often it is asked for.
            UserError: weights of another model.
        """
        before = self.version
        for attempt in range(self.tries):
            try:
                for message in self.ask(self.version):
                    self.version = apply(self.weights, Delta.unpack(message), self.version)
                return self.version != before
            except StaleWeights:
                self.version = NOTHING
            except CorruptDelta:
                if attempt == self.tries - 1:
                    raise
            self.refetched += 1
        return self.version != before

    @torch.no_grad()
    def load_into(self, weights: Weights) -> None:
        """Copy onto the tensors of a running model."""
        for name, tensor in weights.items():
            tensor.copy_(self.weights[name])
