"""Execute ``horizon`` steps of each chunk before asking the chunked base again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.errors import UserError
from vla_rl.policies.base import Observation, Policy
from vla_rl.policies.capabilities import Remembers


class OpenLoop:
    """One action per step from a policy that gives chunks.

    State: ``chunk`` [B, N, H, A], ``index`` [B] int64 (``>= H``: ask the base), ``base``: the base's own state.
    Each row keeps its own chunk, so a reset of one row leaves the chunks of the others alone. A base that decides
    on its last n observations (``capabilities.Remembers``) is shown the n - 1 before it is asked as well.

    Args:
        base: gives chunks [B, T, A].
        horizon: H, steps executed of each; None = all T.
        candidates: N chunks drawn per decision (for a critic to choose from); the first is the default.

        on_decision: called with the rows [k] that asked and what the base gave them, unless deterministic.

    Raises:
        UserError: horizon outside 1..T.
    """

    def __init__(
        self,
        base: Policy,
        horizon: int | None = None,
        candidates: int = 1,
        on_decision: Callable[[Tensor, TensorDict], None] | None = None,
    ) -> None:
        length = base.spec.chunk_length
        if not length:
            raise UserError(
                "policy.horizon applies to policies that give action chunks; this one gives single actions"
            )
        self.horizon = length if horizon is None else horizon
        if not 1 <= self.horizon <= length:
            raise UserError(f"policy.horizon={horizon} is outside 1..{length}, the policy's chunk length")
        if candidates < 1:
            raise UserError(f"candidates={candidates} must be at least 1")
        self.history = base.history if isinstance(base, Remembers) else 1
        self.base, self.candidates, self.on_decision = base, candidates, on_decision
        self.spec = replace(base.spec, chunk_length=0)
        self.queries = 0
        """Calls of the base so far."""

    def initial_state(self, batch_size: int) -> TensorDict:
        """Every row asks at its first step."""
        shape = (batch_size, self.candidates, self.horizon, self.spec.action_dim)
        return TensorDict(
            {
                "chunk": torch.zeros(shape),
                "index": torch.full((batch_size,), self.horizon),
                "base": self.base.initial_state(batch_size),
            },
            batch_size=[batch_size],
        )

    def needs_images(self, state: TensorDict) -> Tensor:
        """Rows whose chunk is used up (or which must be remembered for then), if the base looks at all."""
        return (state["index"] > self.horizon - self.history) & self.base.needs_images(state["base"])

    def act(
        self, observation: Observation, state: TensorDict, *, deterministic: bool = False
    ) -> tuple[TensorDict, TensorDict]:
        """``action`` [B, A] (candidate 0), ``base_candidates`` [B, N, A], ``chunk_index`` [B]."""
        chunk, index, inner = state["chunk"], state["index"], state["base"]
        asking = (index >= self.horizon).nonzero().flatten()
        if len(asking):
            chunk, index = chunk.clone(), index.clone()
            fresh, after = self._ask(observation, inner[asking], asking, deterministic)
            chunk[asking], index[asking] = fresh, 0
            inner = put(inner, asking, after)
        if self.history > 1:
            inner = self._remember(observation, inner, state["index"])
        row = torch.arange(len(index))
        options = chunk[row, :, index]
        output = TensorDict(
            {"action": options[:, 0], "base_candidates": options, "chunk_index": index},
            batch_size=[len(index)],
        )
        return output, TensorDict(
            {"chunk": chunk, "index": index + 1, "base": inner}, batch_size=[len(index)]
        )

    def _remember(self, observation: Observation, inner: TensorDict, index: Tensor) -> TensorDict:
        """Show the base this step in rows that will ask within its history."""
        rows = ((index > self.horizon - self.history) & (index < self.horizon)).nonzero().flatten()
        if not len(rows):
            return inner
        assert isinstance(self.base, Remembers)
        part = take(observation, rows, self.spec.state_keys + self.spec.image_keys)
        return put(inner, rows, self.base.observe(part, inner[rows]))

    def _ask(
        self, observation: Observation, inner: TensorDict, rows: Tensor, deterministic: bool
    ) -> tuple[Tensor, TensorDict]:
        """N chunks [k, N, H, A] for ``rows`` [k], in one batched call of the base."""
        self.queries += 1
        many = rows.repeat_interleave(self.candidates)
        part = take(observation, many, self.spec.state_keys + self.spec.image_keys)
        states = (
            inner
            if self.candidates == 1
            else inner[torch.arange(len(rows)).repeat_interleave(self.candidates)]
        )
        output, after = self.base.act(part, states, deterministic=deterministic)
        if self.on_decision is not None and not deterministic:
            self.on_decision(rows, output)
        fresh = output["action"][:, : self.horizon]
        fresh = fresh.unflatten(0, (len(rows), self.candidates))
        return fresh, after[:: self.candidates]


def put(state: TensorDict, rows: Tensor, part: TensorDict) -> TensorDict:
    """A copy of ``state`` with ``rows`` [k] replaced."""
    state = state.clone()
    state[rows] = part
    return state


def take(observation: Observation, rows: Tensor, keys: tuple[str, ...]) -> Observation:
    """The rows [k] of an observation's ``keys`` and of its ``task`` sentences."""
    part: Observation = {key: observation[key][rows] for key in keys}
    if "task" in observation:
        part["task"] = [observation["task"][i] for i in rows.tolist()]
    return part
