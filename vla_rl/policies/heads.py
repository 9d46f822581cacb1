"""The step-wise view of LeRobot's diffusion and flow heads: an encoder, then a network that is asked once per step.

The encoder's result is kept per row as tensors, so that the many updates of one decision never run it again.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional

from vla_rl.errors import UserError
from vla_rl.policies.denoising import Chain, of_flow, of_scheduler
from vla_rl.policies.gaussian_head import MixtureHead, RegressionHead, trainable_copy

HAVE_HEADS = ("diffusion", "multi_task_dit", "smolvla", "pi0", "pi05")
"""LeRobot types with denoising steps; ``head_of`` also knows ``act`` and ``gaussian_nano``, as chains of one."""


class Head(Protocol):
    """A denoiser behind an encoder.

    Attributes:
        network: asked at every step.
        shape: (T', A') of one row's x.
        first: index in T' of the first action that is executed.
        from_noise: whether the chunk depends on where the chain begins.
    """

    network: nn.Module
    shape: tuple[int, int]
    first: int
    from_noise: bool

    def chain(self, steps: int | None = None) -> Chain:
        """Its levels in ``steps`` steps; None = as saved."""
        ...

    def encode(self, batch: dict[str, Any]) -> TensorDict:
        """What the network is conditioned on [B], from LeRobot's preprocessed batch."""
        ...

    def predict(self, network: nn.Module, x: Tensor, time: Tensor, condition: TensorDict) -> Tensor:
        """The output of ``network`` (``self.network`` or a copy) [B, T', A'] at ``x`` and ``time`` [B]."""
        ...

    def copy(self) -> nn.Module:
        """A trainable copy of ``network``; what only the encoder uses is shared, not copied."""
        ...


def head_of(model: Any) -> Head:
    """The head of a loaded LeRobot policy.

    Raises:
        UserError: a type without one (the message lists those which have it), or one that is not a chain of Gaussians.
    """
    config = model.config
    if config.type == "diffusion":
        return UNetHead(model)
    if config.type == "multi_task_dit":
        return TransformerHead(model)
    if config.type in ("smolvla", "pi0", "pi05"):
        if getattr(config, "adapt_to_pi_aloha", False):
            raise UserError(
                "adapt_to_pi_aloha=true: its actions are re-encoded after the flow; not supported here"
            )
        return FlowHead(model)
    if config.type == "act":
        return RegressionHead(model)
    if config.type == "gaussian_nano":
        return MixtureHead(model)
    raise UserError(
        f"a {config.type} policy has no denoising steps: choose one of {', '.join(HAVE_HEADS)} (policy.path)"
    )


def gaussian_of(
    head: Head, network: nn.Module, chain: Chain, x: Tensor, step: Tensor, condition: TensorDict, eta: float
) -> tuple[Tensor, Tensor]:
    """Mean [B, T', A'] and standard deviation [B, 1, 1] of the step ``step`` [B] that ``network`` takes at ``x``."""
    step = step.to(x.device)
    output = head.predict(network, x, chain.times.to(x.device)[step], condition)
    return chain.gaussian(output, x, step, eta)


def _images(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """``batch`` with its cameras stacked as LeRobot's encoders want them [B, n, cameras, 3, H, W]."""
    if not model.config.image_features:
        return batch
    cameras = [batch[key] for key in model.config.image_features]
    return batch | {"observation.images": torch.stack(cameras, dim=-4)}


class UNetHead:
    """LeRobot's DiffusionPolicy."""

    from_noise = True

    def __init__(self, model: Any) -> None:
        self.model, config = model, model.config
        self.network = model.diffusion.unet
        self.shape = (config.horizon, config.action_feature.shape[0])
        self.first = config.n_obs_steps - 1

    def chain(self, steps: int | None = None) -> Chain:
        """Of its scheduler."""
        diffusion = self.model.diffusion
        return of_scheduler(diffusion.noise_scheduler, steps or diffusion.num_inference_steps)

    def encode(self, batch: dict[str, Any]) -> TensorDict:
        """``vector`` [B, C]."""
        vector = self.model.diffusion._prepare_global_conditioning(_images(self.model, batch))
        return TensorDict({"vector": vector}, batch_size=[len(vector)])

    def predict(self, network: nn.Module, x: Tensor, time: Tensor, condition: TensorDict) -> Tensor:
        """See ``Head``."""
        return network(x, time, global_cond=condition["vector"])

    def copy(self) -> nn.Module:
        """See ``Head``."""
        return trainable_copy(self.network)


class TransformerHead:
    """LeRobot's MultiTaskDiTPolicy, with diffusion or flow matching."""

    from_noise = True

    def __init__(self, model: Any) -> None:
        self.model, config = model, model.config
        self.network = model.noise_predictor
        self.shape = (config.horizon, config.action_feature.shape[0])
        self.first = config.n_obs_steps - 1

    def chain(self, steps: int | None = None) -> Chain:
        """Of its scheduler, or of its flow towards data."""
        config, objective = self.model.config, self.model.objective
        if config.is_diffusion:
            return of_scheduler(objective.noise_scheduler, steps or objective.num_inference_steps)
        if config.integration_method != "euler":
            raise UserError(
                f"integration_method={config.integration_method}: only euler's steps are Gaussians here"
            )
        return of_flow(steps or config.num_integration_steps, "data", config.sigma_min)

    def encode(self, batch: dict[str, Any]) -> TensorDict:
        """``vector`` [B, C]."""
        vector = self.model.observation_encoder.encode(_images(self.model, batch))
        return TensorDict({"vector": vector}, batch_size=[len(vector)])

    def predict(self, network: nn.Module, x: Tensor, time: Tensor, condition: TensorDict) -> Tensor:
        """See ``Head``."""
        return network(x, time, conditioning_vec=condition["vector"])

    def copy(self) -> nn.Module:
        """See ``Head``."""
        return trainable_copy(self.network)


class FlowHead:
    """SmolVLA, pi0 and pi0.5: an action expert that attends to the VLM's keys and values."""

    from_noise = True
    first = 0

    def __init__(self, model: Any) -> None:
        self.model, config = model, model.config
        self.network = model.model
        self.shape = (config.chunk_size, config.max_action_dim)
        self._smol = config.type == "smolvla"
        self._state = config.type == "pi0"  # pi0's expert reads the state itself

    def chain(self, steps: int | None = None) -> Chain:
        """Of its flow towards noise."""
        config = self.model.config
        return of_flow(steps or (config.num_steps if self._smol else config.num_inference_steps), "noise")

    def encode(self, batch: dict[str, Any]) -> TensorDict:
        """``keys``, ``values`` [B, layers, heads, P, D] of the prefix, ``mask`` [B, P], and pi0's ``state``; P is always the same."""
        model, network = self.model, self.network
        tokens = batch["observation.language.tokens"], batch["observation.language.attention_mask"]
        prepare = model.prepare_images if self._smol else model._preprocess_images
        parts = {} if self.model.config.type == "pi05" else {"state": model.prepare_state(batch)}
        images, masks = prepare(batch)
        embedded, mask, attention = network.embed_prefix(
            images, masks, *tokens, **(parts if self._smol else {})
        )
        cache = self._prefix(embedded, mask, attention)
        layers = [(layer.keys, layer.values) for layer in cache.layers]
        # Sentences are tokenized as long as the longest beside them; decisions of different moments share a batch later.
        room = max(0, self.model.config.tokenizer_max_length - tokens[0].shape[1])
        condition = {
            "keys": functional.pad(torch.stack([keys for keys, _ in layers], 1), (0, 0, 0, room)),
            "values": functional.pad(torch.stack([values for _, values in layers], 1), (0, 0, 0, room)),
            "mask": functional.pad(mask, (0, room)),
        }
        if self._state:
            condition |= parts
        return TensorDict(condition, batch_size=[len(mask)])

    def _prefix(self, embedded: Tensor, mask: Tensor, attention: Tensor) -> Any:
        """The VLM's cache."""
        from lerobot.policies.common.vla_utils import make_att_2d_masks, prepare_attention_masks_4d

        allowed = make_att_2d_masks(mask, attention)
        network: Any = self.network
        if self._smol:
            both = network.vlm_with_expert
        else:
            both, allowed = network.paligemma_with_expert, prepare_attention_masks_4d(allowed)
            both.paligemma.model.language_model.config._attn_implementation = "eager"
        _, cache = both.forward(
            attention_mask=allowed,
            position_ids=torch.cumsum(mask, dim=1) - 1,
            past_key_values=None,
            inputs_embeds=[embedded, None],
            use_cache=True,
        )
        return cache

    def predict(self, network: nn.Module, x: Tensor, time: Tensor, condition: TensorDict) -> Tensor:
        """See ``Head``."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer in range(condition["keys"].shape[1]):
            cache.update(condition["keys"][:, layer], condition["values"][:, layer], layer)
        given = {"state": condition["state"]} if self._state else {}
        step: Any = network.denoise_step
        return step(prefix_pad_masks=condition["mask"], past_key_values=cache, x_t=x, timestep=time, **given)

    def copy(self) -> nn.Module:
        """The expert and its projections; the VLM is shared and stays frozen."""
        both = self.network.vlm_with_expert if self._smol else self.network.paligemma_with_expert
        vlm = both.vlm if self._smol else both.paligemma
        shared = [vlm, *([both.processor, self.network.state_proj] if self._smol else [])]
        network = copy.deepcopy(self.network, {id(part): part for part in shared})
        frozen = {id(p) for part in shared if isinstance(part, nn.Module) for p in part.parameters()}
        for parameter in network.parameters():
            parameter.requires_grad_(id(parameter) not in frozen)
        return network
