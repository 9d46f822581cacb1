"""FAST (arXiv 2501.09747): a chunk as the rounded frequencies of its cosine transform, in words of a byte-pair encoding.

Chunks [T, A] are transformed along time, times ``scale``, rounded, and written lowest frequency first, all dimensions of it
together; a small byte-pair encoding, trained on such chunks, makes common runs of them one word. A chunk has as many words
as it needs, then the ``end`` word; a shorter one is filled with ``end``, so that batches keep one shape.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_rl.errors import UserError

LETTERS = 0x4E00
"""Code point of the lowest frequency value: 20 thousand letters without spaces or accents follow."""

SCALE = 10.0
"""Published value: rounding errors of 5 % of the range at a single frequency."""


class FastWords:
    """The vocabulary of chunks [T, A] in -1 ... 1; beyond they are clamped.

    Args:
        tokenizer: byte-pair encoding over letters.
        low: frequency value of the first letter.
        high: of the last.
        scale: multiplies frequencies before they are rounded.
        shape: (T, A).
        count: N, words of a chunk at most, ``end`` included; longer ones lose their highest frequencies.
    """

    def __init__(
        self, tokenizer: Any, low: int, high: int, scale: float, shape: tuple[int, int], count: int
    ) -> None:
        self.tokenizer, self.low, self.high, self.scale = tokenizer, low, high, scale
        self.shape, self.count = shape, count
        self.end: int | None = tokenizer.get_vocab_size()
        self.size = tokenizer.get_vocab_size() + 1
        self.letters = {i: t for t, i in tokenizer.get_vocab().items()}

    @classmethod
    def fit(cls, chunks: Tensor, vocabulary: int, scale: float = SCALE) -> FastWords:
        """A vocabulary of at most ``vocabulary`` words for chunks like ``chunks`` [n, T, A].

        Raises:
            UserError: fewer words than there are frequency values.
        """
        from tokenizers import Tokenizer
        from tokenizers.models import BPE
        from tokenizers.trainers import BpeTrainer

        values = _frequencies(chunks, scale)
        low, high = int(values.min()), int(values.max())
        alphabet = [chr(LETTERS + i) for i in range(high - low + 1)]
        if len(alphabet) >= vocabulary:
            raise UserError(
                f"fast={vocabulary}: these actions have {len(alphabet)} frequency values, each a word of its own: ask for "
                f"{2 * len(alphabet)} or more"
            )
        tokenizer = Tokenizer(BPE())
        trainer = BpeTrainer(
            vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False, min_frequency=2
        )
        tokenizer.train_from_iterator(_texts(values, low), trainer)
        shape = (chunks.shape[1], chunks.shape[2])
        words = cls(tokenizer, low, high, scale, shape, shape[0] * shape[1] + 1)
        words.count = 1 + max(len(row) for row in words._rows(chunks))
        return words

    def encode(self, chunks: Tensor) -> Tensor:
        """Words [B, N] int64 of normalised chunks [B, T, A]."""
        assert self.end is not None
        out = torch.full((len(chunks), self.count), self.end)
        for row, words in enumerate(self._rows(chunks)):
            kept = words[: self.count - 1]
            out[row, : len(kept)] = torch.tensor(kept, dtype=torch.long)
        return out.to(chunks.device)

    def decode(self, words: Tensor) -> Tensor:
        """Normalised chunks [B, T, A] float32 of words [B, N]; too few frequencies are filled with 0, too many are cut."""
        from scipy.fft import idct

        total = self.shape[0] * self.shape[1]
        values = np.zeros((len(words), total), np.float32)
        for row, said in enumerate(words.tolist()):
            if self.end in said:
                said = said[: said.index(self.end)]
            letters = "".join(self.letters.get(word, "") for word in said)[:total]
            values[row, : len(letters)] = [ord(letter) - LETTERS + self.low for letter in letters]
        chunks = idct(values.reshape(-1, *self.shape) / self.scale, axis=1, norm="ortho")
        return torch.from_numpy(np.ascontiguousarray(chunks, np.float32)).clamp(-1, 1).to(words.device)

    def said(self, words: Tensor) -> Tensor:
        """[B, N] bool: words that were said, the first ``end`` among them; what follows it is filling."""
        ends = words == self.end
        return ends.long().cumsum(1) - ends.long() == 0

    def _rows(self, chunks: Tensor) -> list[list[int]]:
        values = np.clip(_frequencies(chunks, self.scale), self.low, self.high)
        return [encoded.ids for encoded in self.tokenizer.encode_batch(_texts(values, self.low))]

    @property
    def identity(self) -> str:
        """Two vocabularies of one identity mean the same by a word."""
        return self.dumps()

    def dumps(self) -> str:
        """As text, for a policy's configuration."""
        own = {
            "low": self.low,
            "high": self.high,
            "scale": self.scale,
            "shape": self.shape,
            "count": self.count,
        }
        return json.dumps(own | {"tokenizer": json.loads(self.tokenizer.to_str())}, ensure_ascii=True)

    @classmethod
    def loads(cls, text: str) -> FastWords:
        """What ``dumps`` wrote.

        Raises:
            UserError: damaged.
        """
        from tokenizers import Tokenizer

        try:
            own = json.loads(text)
            tokenizer = Tokenizer.from_str(json.dumps(own.pop("tokenizer")))
            return cls(tokenizer, **(own | {"shape": tuple(own["shape"])}))
        except Exception as error:  # tokenizers raises bare Exceptions
            raise UserError(
                f"the policy's FAST vocabulary is damaged ({error}): copy its folder again"
            ) from error


def _frequencies(chunks: Tensor, scale: float) -> np.ndarray:
    """[n, T A] whole numbers, lowest frequency first."""
    from scipy.fft import dct

    values: Any = dct(chunks.detach().cpu().float().clamp(-1, 1).numpy(), axis=1, norm="ortho")
    values = values * scale
    return np.rint(values).astype(np.int64).reshape(len(chunks), -1)


def _texts(values: np.ndarray, low: int) -> list[str]:
    return ["".join(chr(LETTERS + int(v) - low) for v in row) for row in values]
