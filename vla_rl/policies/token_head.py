"""The word-by-word view of a token policy, which reinforcement learning and distillation work with."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.errors import UserError
from vla_rl.policies.token_vla.network import choose_trained

HAVE_TOKENS = ("token_vla",)
"""Policy types that act by words."""


class TokenHead:
    """Network, vocabulary and chunk of a loaded ``token_vla``.

    Args:
        model: the LeRobot policy.

    Raises:
        UserError: of another type.
    """

    def __init__(self, model: Any) -> None:
        if model.config.type not in HAVE_TOKENS:
            raise UserError(
                f"a {model.config.type} policy has no action tokens: choose one of {', '.join(HAVE_TOKENS)} (policy.path)"
            )
        self.model, self.network = model, model.network
        self.shape: tuple[int, int] = model.shape
        """(T, A) of a chunk."""
        self.words = model.words
        """The vocabulary: ``BinWords`` or ``FastWords``."""
        self.bins: int = model.config.bins
        self.temperature: float = model.config.temperature

    @property
    def count(self) -> int:
        """N, words of a chunk: T A bins, or of FAST at most so many."""
        return self.words.count

    def encode(self, batch: dict[str, Tensor]) -> TensorDict:
        """The network's condition [B], pictures as uint8."""
        condition = self.model.condition(batch)
        condition["pictures"] = (condition["pictures"] * 255).round().to(torch.uint8)
        return condition

    def normalised(self, tokens: Tensor) -> Tensor:
        """Chunks [B, T, A], normalised, of words [B, N]."""
        return self.words.decode(tokens)

    def tokens_of(self, chunks: Tensor) -> Tensor:
        """Words [B, N] of normalised chunks [B, T, A]."""
        return self.words.encode(chunks)

    def copy(self) -> Any:
        """A network of its own with the same weights; trains what cloning trains."""
        network = copy.deepcopy(self.network)
        # A policy that was loaded to act is frozen altogether: its configuration says what learns.
        choose_trained(network, self.model.config)
        return network
