"""The network of ``gaussian_nano`` and its cloning loss."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor, nn
from torch.nn import functional

from vla_rl.keys import ACTION
from vla_rl.nn.ensemble import mlp
from vla_rl.nn.images import ImageEncoder
from vla_rl.policies.denoising import log_prob
from vla_rl.policies.gaussian_nano.configuration_gaussian_nano import GaussianNanoConfig
from vla_rl.policies.step import Step


class MixtureMLP(nn.Module):
    """Features [B, F] -> M Gaussians over chunks [T, A]; a deviation per mode and action dimension, whatever is seen.

    Args:
        inputs: F.
        config: ``modes``, ``hidden``, bounds of the deviation.
        shape: (T, A).
    """

    def __init__(self, inputs: int, config: GaussianNanoConfig, shape: tuple[int, int]) -> None:
        super().__init__()
        self.modes, self.shape = config.modes, shape
        self.bounds = math.log(config.std_min), math.log(config.std_max)
        steps, dims = shape
        self.layers = mlp(inputs, config.hidden, self.modes * (steps * dims + 1))
        self.log_std = nn.Parameter(torch.full((self.modes, dims), math.log(config.std_first)))

    def forward(self, features: Tensor) -> Step:
        """One Gaussian [B, T, A], or a mixture [B, M, T, A]."""
        output = self.layers(features)
        mean = output[:, self.modes :].view(-1, self.modes, *self.shape)
        std = self.log_std.clamp(*self.bounds).exp()[None, :, None]  # [1, M, 1, A]
        if self.modes == 1:
            return Step(mean[:, 0], std[:, 0])
        return Step(mean, std, functional.log_softmax(output[:, : self.modes], 1))


class GaussianNanoPolicy(PreTrainedPolicy):
    """Chunks of the likeliest mode; cloned by maximum likelihood. ``head`` is what reinforcement learning trains."""

    config_class: Any = GaussianNanoConfig
    name: Any = "gaussian_nano"

    def __init__(self, config: GaussianNanoConfig, **_: Any) -> None:
        super().__init__(config)
        config.validate_features()
        self.config = config
        inputs: Any = config.input_features
        self.vectors = [key for key in inputs if key not in config.image_features]
        width = sum(inputs[key].shape[0] for key in self.vectors)
        self.cameras: ImageEncoder | None = None
        if config.image_features:
            sizes = {
                key: (feature.shape[1], feature.shape[2]) for key, feature in config.image_features.items()
            }
            self.cameras = ImageEncoder(sizes, config.camera_features, config.encoder)
            width += self.cameras.features
        action: Any = config.action_feature
        self.head = MixtureMLP(width, config, (config.chunk_size, action.shape[0]))
        self.reset()

    def features(self, batch: dict[str, Tensor]) -> Tensor:
        """[B, F] normalised vectors, then the cameras'."""
        parts = [batch[key] for key in self.vectors]
        if self.cameras is not None:
            parts.append(self.cameras({key: batch[key] * 255 for key in self.cameras.keys}))
        return torch.cat(parts, 1)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Negative log-likelihood per action that lies inside its episode."""
        step = self.head(self.features(batch))
        inside = ~batch["action_is_pad"][..., None]  # [B, T, 1]
        data, count = batch[ACTION], inside.sum() * self.head.shape[1]
        if step.log_weights is None:
            likelihood = (log_prob(data, step.mean, step.std) * inside).sum()
        else:
            each = log_prob(data[:, None], step.mean, step.std) * inside[:, None]
            likelihood = torch.logsumexp(step.log_weights + each.sum((2, 3)), 1).sum()
        loss = -likelihood / count.clamp(min=1)
        return loss, {"negative_log_likelihood": loss.item()}

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor]) -> Tensor:
        """[B, T, A] normalised."""
        return self.head(self.features(batch)).centre

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor]) -> Tensor:
        """One action at a time, for LeRobot's own loop."""
        if not self._queue:
            chunk = self.predict_action_chunk(batch)[:, : self.config.n_action_steps]
            self._queue.extend(chunk.unbind(1))
        return self._queue.popleft()

    def reset(self) -> None:
        """Forget the rest of the chunk."""
        self._queue: deque[Tensor] = deque()

    def get_optim_params(self) -> Any:
        """All."""
        return self.parameters()
