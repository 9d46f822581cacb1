"""Several policies as one: each row is decided by the specialist of its instruction."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.config import nearest
from vla_rl.errors import UserError
from vla_rl.policies.base import Observation, Policy, PolicySpec, reset_rows
from vla_rl.policies.open_loop import put, take


class Specialists:
    """One policy per instruction.

    State: ``which`` [B] int64, the specialist that decides the row (-1 until its first step), and each specialist's own
    state of all rows.

    Args:
        members: instruction -> policy; all give single actions, or all give chunks, of which the shortest counts.

    Raises:
        UserError: none, action dimensions that differ, or single actions beside chunks.
    """

    def __init__(self, members: Mapping[str, Policy]) -> None:
        if not members:
            raise UserError("specialists: no policy is named")
        self.tasks, self.members = list(members), list(members.values())
        specs = [member.spec for member in self.members]
        for name, values in (
            ("action dimension", {s.action_dim for s in specs}),
            ("kind of action (single or chunk)", {s.chunk_length > 0 for s in specs}),
        ):
            if len(values) > 1:
                raise UserError(
                    f"specialists differ in their {name}: {dict(zip(self.tasks, specs, strict=True))}"
                )
        self.spec = PolicySpec(
            action_dim=specs[0].action_dim,
            chunk_length=min(s.chunk_length for s in specs),
            state_keys=_union(s.state_keys for s in specs),
            image_keys=_union(s.image_keys for s in specs),
            language=True,
            rate_hz=specs[0].rate_hz,
        )

    def initial_state(self, batch_size: int) -> TensorDict:
        """Nobody has decided yet."""
        states = {str(i): member.initial_state(batch_size) for i, member in enumerate(self.members)}
        which = torch.full((batch_size,), -1)
        return TensorDict({"which": which, **states}, batch_size=[batch_size])

    def needs_images(self, state: TensorDict) -> Tensor:
        """Rows whose specialist looks; before the first step, rows that any of them would look at."""
        which = state["which"]
        looks = torch.zeros(len(which), dtype=torch.bool)
        for i, member in enumerate(self.members):
            looks |= ((which == i) | (which < 0)) & member.needs_images(state[str(i)])
        return looks

    def act(
        self, observation: Observation, state: TensorDict, *, deterministic: bool = False
    ) -> tuple[TensorDict, TensorDict]:
        """``action`` [B, A], or chunks [B, T, A].

        Raises:
            UserError: an instruction that no specialist has.
        """
        which = torch.tensor([self._index(task) for task in observation["task"]], dtype=torch.long)
        state = state.clone(recurse=False)  # ``put`` copies what changes
        changed = (state["which"] >= 0) & (state["which"] != which)  # a row that was given another task
        shape = (self.spec.chunk_length,) if self.spec.chunk_length else ()
        action = torch.zeros(len(which), *shape, self.spec.action_dim)
        for i in which.unique().tolist():
            member, rows = self.members[i], (which == i).nonzero().flatten()
            inner = state[str(i)]
            if changed[rows].any():
                inner = reset_rows(member, inner, changed & (which == i))
            part = take(observation, rows, member.spec.state_keys + member.spec.image_keys)
            output, after = member.act(part, inner[rows], deterministic=deterministic)
            given = output["action"]
            if self.spec.chunk_length:
                given = given[:, : self.spec.chunk_length]
            action[rows] = given
            state[str(i)] = put(inner, rows, after)
        state["which"] = which
        return TensorDict({"action": action}, batch_size=[len(which)]), state

    def _index(self, task: str) -> int:
        if task not in self.tasks:
            raise UserError(f"no specialist for the instruction '{task}': {nearest(task, self.tasks)}")
        return self.tasks.index(task)


def _union(keys: object) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for part in keys for key in part))  # type: ignore[attr-defined]
