"""A token policy whose words a trained copy of its network says."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.errors import UserError
from vla_rl.policies.action_tokens import kl, log_probs_of
from vla_rl.policies.base import Observation, Policy
from vla_rl.policies.capabilities import Tokens
from vla_rl.policies.token_head import HAVE_TOKENS


class Spoken:
    """Chunks [B, T, A] of words drawn at a temperature; deterministic, of the likeliest.

    Of bins only the words of the ``executed`` first steps are said: later ones cannot change them. The rest of the chunk is the
    middle of the action's range, and must not be carried out. FAST words are of the whole chunk.

    Args:
        base: a policy with the ``Tokens`` capability.
        temperature: of drawing.
        executed: H, steps of a chunk that are carried out; None = all.
        drawn_steps: of a chunk, whose words are drawn, the likeliest following from them; 0 = all.
        generator: of drawing.

    Raises:
        UserError: a base without words, a temperature that is not positive, more ``drawn_steps`` than are carried out, or a part
            of FAST words.
    """

    def __init__(
        self,
        base: Policy,
        *,
        temperature: float = 1.0,
        executed: int | None = None,
        drawn_steps: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(base, Tokens):
            raise UserError(
                f"{type(base).__name__} has no action tokens: choose a policy of type {', '.join(HAVE_TOKENS)}"
            )
        if temperature <= 0:
            raise UserError(f"algorithm.temperature={temperature} must be above 0")
        self.base, self.head = base, base.token_head
        self.temperature, self.generator = temperature, generator
        steps, self.dims = self.head.shape
        self.executed = min(steps, executed or steps)
        self.words = self.head.words
        fast = self.words.end is not None
        if not 0 <= drawn_steps <= self.executed or (drawn_steps and fast):
            raise UserError(
                f"algorithm.drawn_steps={drawn_steps}: at most the {self.executed} steps of a chunk that are carried out, "
                "0 = all; FAST words, which are of the whole chunk: 0"
            )
        self.count = self.words.count if fast else self.executed * self.dims
        self.drawn = drawn_steps * self.dims or self.count
        """Words that are drawn, and remembered as a decision's."""
        self.network = self.head.copy()
        self.token_head = copy.copy(self.head)
        """The ``Tokens`` capability, with what was learned: one token policy may teach another."""
        self.token_head.network = self.network
        self.network.eval()  # dropout would make the probability of a word another one than it was drawn with
        self.spec = replace(base.spec)

    def initial_state(self, batch_size: int) -> TensorDict:
        """The base's."""
        return self.base.initial_state(batch_size)

    def needs_images(self, state: TensorDict) -> Tensor:
        """The base's."""
        return self.base.needs_images(state)

    def act(
        self, observation: Observation, state: TensorDict, *, deterministic: bool = False
    ) -> tuple[TensorDict, TensorDict]:
        """``action`` [B, T, A]; exploring also ``tokens``, ``log_prob`` [B, N] of the N words that are drawn, and ``condition``."""
        condition, state = self.encode_tokens(observation, state)
        temperature = 0.0 if deterministic else self.temperature
        generator = None if deterministic else self.generator
        said = self.network.sample(condition, self.count, temperature, generator, self.words.end, self.drawn)
        output = TensorDict({"action": self.actions_of_tokens(said["tokens"])}, batch_size=[len(condition)])
        if not deterministic:
            output["tokens"] = said["tokens"][:, : self.drawn]
            output["log_prob"] = said["log_prob"][:, : self.drawn]
            output["condition"] = condition
        return output, state

    def encode_tokens(self, observation: Observation, state: TensorDict) -> tuple[TensorDict, TensorDict]:
        """The base's; pictures are looked at once where the network's eyes never change."""
        condition, state = self.base.encode_tokens(observation, state)  # type: ignore[attr-defined]
        looked = getattr(self.network, "looked_at", None)
        return (condition if looked is None else looked(condition)), state

    def actions_of_tokens(self, tokens: Tensor) -> Tensor:
        """Chunks [B, T, A] in environment units, of the words [B, N] that are said: the base's."""
        return self.base.actions_of_tokens(tokens)  # type: ignore[attr-defined]

    def instructions(self, condition: TensorDict) -> list[str]:
        """What each of ``condition`` [B] is asked to do; nothing of a base that cannot tell."""
        tell = getattr(self.base, "instructions", None)
        return [] if tell is None else tell(condition)

    def evaluate(self, condition: TensorDict, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability and entropy [B, N] of ``tokens`` [B, N] now, 0 for filling, and the logits [B, N, bins] they come from."""
        logits = self.network.logits(condition, tokens) / self.temperature
        chance, entropy = log_probs_of(logits, tokens)
        said = self.words.said(tokens)
        return chance * said, entropy * said, logits

    def from_base(self, logits: Tensor, condition: TensorDict, tokens: Tensor) -> Tensor:
        """[B, N] divergence of ``logits`` from the frozen base's, exact over the words."""
        with torch.no_grad():
            there = (self.head.network.logits(condition, tokens) / self.temperature).log_softmax(-1)
        return kl(logits.log_softmax(-1), there) * self.words.said(tokens)
