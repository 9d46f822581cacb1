"""``token_vla``: LeRobot's side of the action-token VLA, and its cloning loss."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional

from vla_rl.keys import ACTION, STATE
from vla_rl.policies.action_tokens import BinWords, around, kl
from vla_rl.policies.fast_tokens import FastWords
from vla_rl.policies.token_vla.configuration_token_vla import TokenVLAConfig
from vla_rl.policies.token_vla.keypoints import add_keypoints
from vla_rl.policies.token_vla.network import TokenNetwork, choose_trained
from vla_rl.policies.token_vla.stem import add_stem

WORDS, MASK = "observation.language.tokens", "observation.language.attention_mask"
"""LeRobot's keys of the tokenized prompt."""


class TokenVLAPolicy(PreTrainedPolicy):
    """Chunks of the likeliest words; cloned by cross-entropy. ``network`` is what reinforcement learning trains."""

    config_class: Any = TokenVLAConfig
    name: Any = "token_vla"

    def __init__(self, config: TokenVLAConfig, **_: Any) -> None:
        super().__init__(config)
        config.validate_features()
        self.config = config
        state: Any = (config.input_features or {}).get(STATE)
        vlm = _vision_language_model(config)
        self.network = TokenNetwork(
            vlm,
            bins=config.bins,
            state_dim=state.shape[0] if state is not None else 0,
            image_size=config.image_size or _own_size(vlm),
            mean=config.image_mean,
            std=config.image_std,
        )
        if config.lora_rank:
            _adapt(self.network, config.lora_rank)
        choose_trained(self.network, config)
        action: Any = config.action_feature
        self.shape = (config.chunk_size, action.shape[0])
        self.words = FastWords.loads(config.fast) if config.fast else BinWords(config.bins, self.shape)
        self.reset()

    def condition(self, batch: dict[str, Tensor]) -> TensorDict:
        """What the network reads, from LeRobot's processed batch."""
        cameras = [batch[key] for key in self.config.image_features]
        parts = {
            "pictures": torch.stack(cameras, 1),
            "words": batch[WORDS],
            "mask": batch[MASK].bool(),
        }
        if self.network.state_token is not None:
            parts["state"] = batch[STATE]
        return TensorDict(parts, batch_size=[len(cameras[0])])  # type: ignore[arg-type]

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy (with ``blur`` the divergence from the Gaussian) per word: of bins, of the actions that lie inside their episode."""
        tokens = self.words.encode(batch[ACTION])  # [B, N]
        logits = self.network.logits(self.condition(batch), tokens)
        inside = self.words.said(tokens)
        if self.words.end is None:  # each word is of one time step, which may lie beyond the episode's end
            inside = (~batch["action_is_pad"])[..., None].expand(-1, -1, self.shape[1]).flatten(1)
        if self.config.blur:
            aim = around(batch[ACTION].flatten(1), self.config.blur, self.config.bins)
            each = kl(aim, logits.log_softmax(-1))
        else:
            each = functional.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
        loss = (each * inside).sum() / inside.sum().clamp(min=1)
        right = ((logits.argmax(-1) == tokens) & inside).sum() / inside.sum().clamp(min=1)
        return loss, {"cross_entropy": loss.item(), "accuracy": right.item()}

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor]) -> Tensor:
        """[B, T, A] normalised, greedy."""
        found = self.network.sample(self.condition(batch), self.words.count, 0.0, end=self.words.end)
        return self.words.decode(found["tokens"])

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
        """What trains."""
        return [p for p in self.parameters() if p.requires_grad]


def _vision_language_model(config: TokenVLAConfig) -> Any:
    from transformers import AutoConfig, AutoModelForImageTextToText

    if config.load_vlm_weights:
        return AutoModelForImageTextToText.from_pretrained(config.vlm_model_name)
    vlm = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(config.vlm_model_name))
    add_stem(vlm)
    add_keypoints(vlm)
    return vlm


def _own_size(vlm: Any) -> int:
    size = vlm.config.vision_config.image_size
    return int(size[0] if isinstance(size, (list, tuple)) else size)


def _adapt(network: TokenNetwork, rank: int) -> None:
    """Low-rank adapters on the language model's linear layers."""
    from peft import LoraConfig, inject_adapter_in_model

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), network.language)
