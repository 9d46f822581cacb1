"""The instruction as a short vector, so that one critic can tell apart the tasks it learns together.

Feature hashing (Weinberger et al., ICML 2009): every word has a fixed random direction, a sentence is their
normalised sum. It needs no vocabulary, no model and no list of tasks, is the same on every machine, and two
sentences that differ in a word differ. It knows no synonyms: understanding language is the base policy's work.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

WIDTH = 16


@lru_cache(maxsize=4096)
def sentence_vector(sentence: str) -> Tensor:
    """[WIDTH] float32 of length sqrt(WIDTH); zeros for a sentence without a word."""
    total = np.zeros(WIDTH, np.float32)
    words = re.findall(r"\w+", sentence.lower())
    for word in words:
        total += np.random.default_rng(zlib.crc32(word.encode())).standard_normal(WIDTH, np.float32)
    length = float(np.linalg.norm(total))
    return torch.from_numpy(total / length * WIDTH**0.5 if length else total)


def sentence_vectors(sentences: Sequence[str]) -> Tensor:
    """[B, WIDTH] of B sentences."""
    return torch.stack([sentence_vector(s) for s in sentences])
