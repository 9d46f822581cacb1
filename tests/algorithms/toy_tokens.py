"""A token policy for the toy: an MLP that says a chunk word after word, cloned from the biased base in a few seconds."""

from __future__ import annotations

import copy

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from toy_diffusion import CHUNK, examples

from vla_rl.keys import ENV_STATE, STATE
from vla_rl.policies.action_tokens import BinWords, drawn, log_probs_of
from vla_rl.policies.base import PolicySpec

BINS = 16


class Speaker(nn.Module):
    """(observation [B, 6], words before) -> logits of the next word; the last two words and its place are what it knows."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.word = nn.Embedding(BINS + 1, 8)
        self.place = nn.Embedding(CHUNK * 2, 8)
        self.layers = nn.Sequential(
            nn.Linear(6 + 24, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, BINS)
        )

    def logits(self, condition: TensorDict, tokens: Tensor) -> Tensor:
        batch, count = tokens.shape
        start = tokens.new_full((batch, 2), BINS)
        said = torch.cat([start, tokens], 1)
        before = torch.stack([said[:, :count], said[:, 1 : count + 1]], 2)  # two words before each
        places = self.place(torch.arange(count)).expand(batch, -1, -1)
        seen = condition["seen"][:, None].expand(-1, count, -1)
        return self.layers(torch.cat([seen, self.word(before).flatten(2), places], 2))

    @torch.no_grad()
    def sample(self, condition, count, temperature, generator=None, end=None, first=None):
        tokens = torch.zeros(len(condition), 0, dtype=torch.long)
        chances, entropies = [], []
        for place in range(count):
            scores = self.logits(condition, torch.cat([tokens, tokens.new_zeros(len(tokens), 1)], 1))[:, -1]
            token = drawn(scores, temperature if first is None or place < first else 0.0, generator)
            chance, entropy = log_probs_of(scores, token, temperature or 1.0)
            tokens = torch.cat([tokens, token[:, None]], 1)
            chances.append(chance)
            entropies.append(entropy)
        parts = {"tokens": tokens, "log_prob": torch.stack(chances, 1), "entropy": torch.stack(entropies, 1)}
        return TensorDict(parts, batch_size=[len(tokens)])


class ToyTokenHead:
    """``vla_rl.policies.token_head.TokenHead``."""

    shape, bins, temperature, count = (CHUNK, 2), BINS, 1.0, CHUNK * 2

    def __init__(self) -> None:
        self.network = Speaker()
        self.words = BinWords(BINS, self.shape)

    def normalised(self, tokens: Tensor) -> Tensor:
        return self.words.decode(tokens)

    def tokens_of(self, chunks: Tensor) -> Tensor:
        return self.words.encode(chunks)

    def copy(self) -> nn.Module:
        return copy.deepcopy(self.network).requires_grad_(True)


class ToyTokens:
    """A policy with the ``Tokens`` capability."""

    spec = PolicySpec(2, CHUNK, state_keys=(STATE, ENV_STATE))

    def __init__(self, bias: float = 0.06, updates: int = 1500) -> None:
        torch.manual_seed(6)
        self.token_head = ToyTokenHead()
        network = self.token_head.network
        seen, chunks = examples(bias)
        tokens = self.token_head.tokens_of(chunks)
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
        for _ in range(updates):
            pick = torch.randint(len(seen), (256,))
            condition = TensorDict({"seen": seen[pick]}, [256])
            logits = network.logits(condition, tokens[pick])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[pick].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        network.requires_grad_(False).eval()

    def initial_state(self, batch_size: int) -> TensorDict:
        return TensorDict({}, [batch_size])

    def needs_images(self, state: TensorDict) -> Tensor:
        return torch.zeros(state.batch_size[0], dtype=torch.bool)

    def encode_tokens(self, observation, state):
        seen = torch.cat([observation[STATE], observation[ENV_STATE]], 1)
        return TensorDict({"seen": seen}, [len(seen)]), state

    def actions_of_tokens(self, tokens: Tensor) -> Tensor:
        return self.token_head.normalised(tokens)

    def act(self, observation, state, *, deterministic: bool = False):
        condition, state = self.encode_tokens(observation, state)
        said = self.token_head.network.sample(condition, self.token_head.count, 0.0)
        return TensorDict({"action": self.actions_of_tokens(said["tokens"])}, [len(condition)]), state
