"""One policy acts, another says at every step what it would have done: demonstrations labelled as they happen."""

from __future__ import annotations

from dataclasses import replace

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.policies.base import Observation, Policy


class Shadowed:
    """``actor`` decides (an expert, a person); ``base`` only contributes ``base_action``.

    The base runs open loop along the actor's trajectory from the start of each episode, as it would if it acted,
    and looks only when it asks for a new chunk.
    """

    def __init__(self, actor: Policy, base: Policy) -> None:
        self.actor, self.base = actor, base
        keys = tuple(dict.fromkeys(actor.spec.state_keys + base.spec.state_keys))
        images = tuple(dict.fromkeys(actor.spec.image_keys + base.spec.image_keys))
        self.spec = replace(base.spec, state_keys=keys, image_keys=images)

    def initial_state(self, batch_size: int) -> TensorDict:
        """Both states side by side."""
        parts = {"actor": self.actor.initial_state(batch_size), "base": self.base.initial_state(batch_size)}
        return TensorDict(parts, batch_size=[batch_size])

    def needs_images(self, state: TensorDict) -> Tensor:
        """Rows that either of them must see."""
        return self.actor.needs_images(state["actor"]) | self.base.needs_images(state["base"])

    def act(
        self, observation: Observation, state: TensorDict, *, deterministic: bool = False
    ) -> tuple[TensorDict, TensorDict]:
        """``action`` of the actor, ``base_action`` [B, N, A] of the base, ``intervention`` true."""
        output, acted = self.actor.act(observation, state["actor"], deterministic=deterministic)
        shadow, based = self.base.act(observation, state["base"], deterministic=deterministic)
        base = shadow.get("base_candidates", shadow["action"].unsqueeze(1))
        size = [len(base)]
        both = {
            "action": output["action"],
            "base_action": base,
            "intervention": torch.ones(len(base), dtype=torch.bool),
        }
        return TensorDict(both, size), TensorDict({"actor": acted, "base": based}, size)
