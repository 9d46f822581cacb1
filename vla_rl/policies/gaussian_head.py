"""Policies that regress their chunk, as a chain of one step: a Gaussian or a mixture of them, the classic PPO policies.

With it the machinery of denoising steps gives Gaussian PPO, the baseline that diffusion is compared with: same update,
same critic, one step instead of K, whose deviation is at least the algorithm's ``min_std``.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from vla_rl.errors import UserError
from vla_rl.policies.denoising import Chain
from vla_rl.policies.step import Step


def _one_step(config: Any, steps: int | None) -> Chain:
    """From nothing to the chunk.

    Raises:
        UserError: more steps are asked for.
    """
    if steps not in (None, 1):
        raise UserError(f"algorithm.denoising_steps={steps}: policies of type {config.type} have one step")
    return Chain(torch.zeros(1), torch.tensor([1e-6, 1.0]), torch.tensor([1.0, 0.0]), "sample")


def trainable_copy(network: nn.Module) -> nn.Module:
    """A copy all of which learns."""
    network = copy.deepcopy(network)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network


class RegressionHead:
    """LeRobot's ACT, whose latent is zero when it acts. There is no noise to begin from, and all of it is trained."""

    first = 0
    from_noise = False

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config
        self.network = model.model
        self.shape = (self.config.chunk_size, self.config.action_feature.shape[0])

    def chain(self, steps: int | None = None) -> Chain:
        """See ``_one_step``."""
        return _one_step(self.config, steps)

    def encode(self, batch: dict[str, Any]) -> TensorDict:
        """The normalised observation itself [B, ...]: the trained copy has an encoder of its own."""
        seen = {key: batch[key] for key in self.config.input_features}
        return TensorDict(seen, batch_size=[len(next(iter(seen.values())))])

    def predict(self, network: nn.Module, x: Tensor, time: Tensor, condition: TensorDict) -> Tensor:
        """See ``Head``; ``x`` and ``time`` say nothing here."""
        batch: dict[str, Any] = dict(condition.items())
        if self.config.image_features:
            batch["observation.images"] = [condition[key] for key in self.config.image_features]
        return network(batch)[0]

    def copy(self) -> nn.Module:
        """See ``Head``."""
        return trainable_copy(self.network)


class MixtureHead:
    """``gaussian_nano``: one or several Gaussians behind frozen camera features."""

    first = 0
    from_noise = False

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config
        self.network = model.head
        self.shape = model.head.shape

    def chain(self, steps: int | None = None) -> Chain:
        """See ``_one_step``."""
        return _one_step(self.config, steps)

    def encode(self, batch: dict[str, Any]) -> TensorDict:
        """``vector`` [B, F]."""
        vector = self.model.features(batch)
        return TensorDict({"vector": vector}, batch_size=[len(vector)])

    def mixture(self, network: nn.Module, condition: TensorDict) -> Step:
        """What the chunk is drawn from."""
        return network(condition["vector"])

    def predict(self, network: nn.Module, x: Tensor, time: Tensor, condition: TensorDict) -> Tensor:
        """See ``Head``: the likeliest chunk; ``x`` and ``time`` say nothing here."""
        return self.mixture(network, condition).centre

    def copy(self) -> nn.Module:
        """See ``Head``."""
        return trainable_copy(self.network)
