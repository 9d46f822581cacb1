"""The network of ``token_vla``: pictures, prompt and proprioception first, once; then one action word after the other.

The prefix is [pictures | prompt | proprioception], each as embeddings of the language model; the words of the chunk follow
time step by time step. Words are rows that are added to the model's vocabulary, and only they are ever scored.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional

from vla_rl.policies.action_tokens import drawn, log_probs_of
from vla_rl.policies.token_vla.keypoints import KeypointTowers


class TokenNetwork(nn.Module):
    """Conditions -> logits over ``bins`` words, autoregressively.

    A condition is a TensorDict [B]: ``pictures`` [B, n, 3, H, W] uint8, or float in [0, 1], or what was seen in them (``seen``, see
    ``looked_at``), ``words`` [B, L] int64 prompt tokens, ``mask`` [B, L] bool which of them are there, and, with proprioception,
    ``state`` [B, S] normalised.

    Args:
        vlm: transformers' image-text-to-text model; its vocabulary is enlarged by ``bins``.
        bins: words.
        state_dim: S; 0 = none.
        image_size: pixels that pictures are resized to.
        mean: of pictures, three numbers.
        std: the same.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        vlm: Any,
        *,
        bins: int,
        state_dim: int,
        image_size: int,
        mean: list[float],
        std: list[float],
    ) -> None:
        super().__init__()
        self.first_word = int(vlm.get_input_embeddings().num_embeddings)
        vlm.resize_token_embeddings(self.first_word + bins, mean_resizing=False)
        self.vlm, self.bins, self.image_size = vlm, bins, image_size
        self.eyes_change = True
        """Whether what is seen in a picture may become something else (``choose_trained``)."""
        width = vlm.get_input_embeddings().embedding_dim
        self.state_token = nn.Linear(state_dim, width) if state_dim else None
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def language(self) -> Any:
        """The language model's body, without its output layer."""
        return self.vlm.model.language_model

    def prefix(self, condition: TensorDict) -> tuple[Tensor, Tensor]:
        """Embeddings [B, P, D] and which of them are there [B, P] bool."""
        seen = condition["seen"] if "seen" in condition.keys() else self.see(condition["pictures"])
        batch = len(seen)
        # Left out where no row says anything: most prompts are much shorter than the longest allowed.
        said = condition["mask"].any(0)
        words, mask = condition["words"][:, said], condition["mask"][:, said]
        parts = [seen, self.vlm.get_input_embeddings()(words)]
        there = [torch.ones(seen.shape[:2], dtype=torch.bool, device=seen.device), mask]
        if self.state_token is not None:
            parts.append(self.state_token(condition["state"])[:, None].to(seen))
            there.append(torch.ones(batch, 1, dtype=torch.bool, device=seen.device))
        return torch.cat(parts, 1), torch.cat(there, 1)

    @property
    def width(self) -> int:
        """D of the language model."""
        return self.vlm.get_input_embeddings().embedding_dim

    @property
    def towers(self) -> KeypointTowers | None:
        """One for each camera, or None: one for all."""
        tower = getattr(self.vlm.model, "vision_tower", None)
        return tower if isinstance(tower, KeypointTowers) else None

    @torch.no_grad()
    def looked_at(self, condition: TensorDict) -> TensorDict:
        """``condition`` with what is seen in its pictures in their place: for eyes that never change, and where it takes no more room."""
        if self.eyes_change or "seen" in condition.keys():
            return condition
        seen = self.see(condition["pictures"])
        if seen.nbytes > condition["pictures"].nbytes:
            return condition
        kept = condition.exclude("pictures")
        kept["seen"] = seen
        return kept

    def see(self, pictures: Tensor) -> Tensor:
        """[B, n tokens, D] of pictures [B, n, 3, H, W] of n cameras."""
        if self.towers is not None:
            return torch.cat([self.look(each, camera) for camera, each in enumerate(pictures.unbind(1))], 1)
        return self.look(pictures.flatten(0, 1)).reshape(len(pictures), -1, self.width)

    def look(self, pictures: Tensor, camera: int = 0) -> Tensor:
        """[B, tokens, D] of pictures [B, 3, H, W] of a camera; which one, only towers of ``KeypointTowers`` ask."""
        pictures = pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures
        if pictures.shape[-1] != self.image_size or pictures.shape[-2] != self.image_size:
            size = (self.image_size, self.image_size)
            pictures = functional.interpolate(
                pictures, size, mode="bilinear", antialias=True, align_corners=False
            )
        normal = (pictures - self.mean) / self.std
        if self.towers is not None:
            return self.towers(normal.to(self.vlm.dtype), camera)
        found = self.vlm.get_image_features(pixel_values=normal.to(self.vlm.dtype))
        return getattr(found, "pooler_output", found)

    def _embedded(self, tokens: Tensor) -> Tensor:
        return self.vlm.get_input_embeddings()(tokens + self.first_word)

    def _hidden(self, embedded: Tensor, there: Tensor) -> Tensor:
        """[B, N, D] of the language model on ``embedded`` [B, N, D], of which those ``there`` [B, N] are."""
        return self.language(
            inputs_embeds=embedded,
            attention_mask=there.long(),
            position_ids=_positions(there),
            use_cache=False,
        ).last_hidden_state

    def _scores(self, hidden: Tensor) -> Tensor:
        """Logits of the action words alone: the rest of the vocabulary is never multiplied out."""
        return self._scored(hidden, slice(self.first_word, None))

    def _text_scores(self, hidden: Tensor) -> Tensor:
        """Logits of all other words."""
        return self._scored(hidden, slice(self.first_word))

    def _scored(self, hidden: Tensor, words: slice) -> Tensor:
        head = self.vlm.get_output_embeddings()
        bias = head.bias[words] if head.bias is not None else None
        return functional.linear(hidden, head.weight[words], bias).float()

    def logits(self, condition: TensorDict, tokens: Tensor) -> Tensor:
        """[B, N, bins] of each of ``tokens`` [B, N] given those before it, in one pass."""
        prefix, there = self.prefix(condition)
        count = tokens.shape[1]
        embedded = torch.cat([prefix, self._embedded(tokens[:, :-1]).to(prefix)], 1)
        mask = torch.cat([there, there.new_ones(len(there), count - 1)], 1)
        hidden = self._hidden(embedded, mask)
        return self._scores(hidden[:, -count:])

    def answer(self, seen: Tensor, words: Tensor, mask: Tensor, before: Any = None) -> Tensor:
        """[B, bins] of the first word after a question, without proprioception.

        Args:
            seen: pictures already looked at, [B, tokens, D].
            words: prompt tokens [B, L].
            mask: [B, L] which of them are there; those on the right may be missing.
            before: of ``remember``: what all B questions begin with; None = nothing.
        """
        asked = self.vlm.get_input_embeddings()(words)
        there = torch.cat([mask.new_ones(seen.shape[:2]), mask], 1)
        cache, length = None, 0
        if before is not None:
            cache, length = copy.deepcopy(before), before.get_seq_length()
            cache.batch_repeat_interleave(len(seen))
        every = torch.cat([there.new_ones(len(there), length), there], 1)
        hidden = self.language(
            inputs_embeds=torch.cat([seen, asked.to(seen)], 1),
            attention_mask=every.long(),
            position_ids=_positions(every)[:, length:],
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        last = there.shape[1] - 1 - mask.flip(1).int().argmax(1)
        return self._scores(hidden[torch.arange(len(hidden), device=hidden.device), last])

    def text_logits(self, seen: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """[B, L, vocabulary without the action words] of each of ``words`` [B, L] given the pictures and the words before it.

        Args:
            seen: pictures already looked at, [B, tokens, D].
            words: tokens; those on the right may be missing.
            mask: [B, L] which of them are there.
        """
        embedded = torch.cat([seen, self.vlm.get_input_embeddings()(words).to(seen)], 1)
        there = torch.cat([mask.new_ones(seen.shape[:2]), mask], 1)
        hidden = self._hidden(embedded, there)
        return self._text_scores(hidden[:, seen.shape[1] - 1 : -1])

    @torch.no_grad()
    def say(self, seen: Tensor, words: Tensor, end: int, most: int) -> list[int]:
        """The likeliest tokens after ``words`` [L] about pictures already looked at [tokens, D], up to ``end`` or ``most``."""
        now = torch.cat([seen, self.vlm.get_input_embeddings()(words).to(seen)])[None]
        cache, said, length = None, [], 0
        while len(said) < most:
            places = torch.arange(length, length + now.shape[1], device=now.device)[None]
            output = self.language(
                inputs_embeds=now, position_ids=places, past_key_values=cache, use_cache=True
            )
            cache, length = output.past_key_values, length + now.shape[1]
            token = int(self._text_scores(output.last_hidden_state[0, -1]).argmax())
            if token == end:
                break
            said.append(token)
            now = self.vlm.get_input_embeddings()(torch.tensor([[token]], device=now.device)).to(seen)
        return said

    @torch.no_grad()
    def remember(self, seen: Tensor) -> Any:
        """The language model's cache after pictures already looked at [tokens, D], to begin many questions with."""
        there = torch.ones(1, len(seen), dtype=torch.long, device=seen.device)
        return self.language(
            inputs_embeds=seen[None], attention_mask=there, position_ids=there.cumsum(1) - 1, use_cache=True
        ).past_key_values

    @torch.no_grad()
    def sample(
        self,
        condition: TensorDict,
        count: int,
        temperature: float,
        generator: torch.Generator | None = None,
        end: int | None = None,
        first: int | None = None,
    ) -> TensorDict:
        """``count`` words by cached decoding: ``tokens`` [B, N], their ``log_prob`` and the ``entropy`` [B, N].

        Probabilities are those at the temperature that was sampled with; at temperature 0 (greedy) those at 1. After the word
        ``end``, where there is one, a row is filled with it, certain as it is (log-probability and entropy 0). With ``first``
        only so many words are drawn; those after them are the likeliest.
        """
        prefix, there = self.prefix(condition)
        mask, now, cache = there, prefix, None
        tokens, chances, entropies = [], [], []
        over = torch.zeros(len(prefix), dtype=torch.bool, device=prefix.device)
        for step in range(count):
            places = _positions(mask)[:, -now.shape[1] :]
            output = self.language(
                inputs_embeds=now,
                attention_mask=mask.long(),
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            scores = self._scores(output.last_hidden_state[:, -1])
            token = drawn(scores, temperature if first is None or step < first else 0.0, generator)
            chance, entropy = log_probs_of(scores, token, temperature or 1.0)
            if end is not None:
                token = token.masked_fill(over, end)
                chance, entropy = chance.masked_fill(over, 0.0), entropy.masked_fill(over, 0.0)
                over = over | (token == end)
            tokens.append(token)
            chances.append(chance)
            entropies.append(entropy)
            if over.all():
                break
            if step < count - 1:
                now = self._embedded(token)[:, None].to(prefix)
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        rest = count - len(tokens)
        parts = {
            "tokens": functional.pad(torch.stack(tokens, 1), (0, rest), value=end or 0),
            "log_prob": functional.pad(torch.stack(chances, 1), (0, rest)),
            "entropy": functional.pad(torch.stack(entropies, 1), (0, rest)),
        }
        return TensorDict(parts, batch_size=[len(prefix)])


VISION = ("vision_tower", "multi_modal_projector", "connector")
"""Parts of the names of what looks, in transformers' models."""

NEW = ("lora_", "embed_tokens", "lm_head", "state_token")
"""Parts of the names of what is new, beside a model that low-rank adapters leave as it is: its words are, too."""


def choose_trained(network: TokenNetwork, config: Any) -> None:
    """Gradients for what ``lora_rank`` and ``freeze_vision`` of a ``TokenVLAConfig`` let learn."""
    network.eyes_change = not (config.freeze_vision or config.lora_rank)
    for name, parameter in network.named_parameters():
        new = not config.lora_rank or any(part in name for part in NEW)
        kept = config.freeze_vision and any(part in name for part in VISION)
        parameter.requires_grad_(new and not kept)


def _positions(mask: Tensor) -> Tensor:
    """Place of each token among those that are there."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)
