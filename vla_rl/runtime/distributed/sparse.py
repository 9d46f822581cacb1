"""Weights as what has changed since the receiver's version: lossless, compressed, checksummed (SparseRL-Sync).

An update of reinforcement learning moves few of a bfloat16 model's weights, and most of those by the last bit. Tensors are
taken for whole numbers of their own width. Both sides have the weights from before, so these go by their exponent: a step
of Adam is of about the same length for all, which a small weight takes in many of its last bits and a large one does not
feel. Of each such class goes out where it changed (gaps between indices) and by how much (the difference, modulo the
width), or, where much of it changed, every difference: half the bytes of the same without classes. Buckets of some
megabytes are compressed and checksummed one by one. Against zeros the same encoding is a full snapshot.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import zstandard
from torch import Tensor

from vla_rl.errors import UserError

Weights = dict[str, Tensor]

BUCKET = 8 << 20
"""Bytes of weights whose changes are compressed together."""

DENSE = 0.3
"""Share of a class that has to change for all of its differences to be sent: gaps then cost more than zeros."""

NOTHING = -1
"""Version of a receiver that has no weights."""

_WIDTHS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_EXPONENTS = {torch.bfloat16: (7, 8), torch.float16: (10, 5), torch.float32: (23, 8), torch.float64: (52, 11)}
"""Where a floating-point number has its exponent: bits below it, bits of it."""
_HEAD = struct.Struct("<II")
"""Bytes of the head that follows, and its checksum."""


class StaleWeights(RuntimeError):
    """A delta from another version than the receiver's: ask for a snapshot."""


class CorruptDelta(RuntimeError):
    """A bucket's checksum is wrong, or it does not unpack: ask again."""


@dataclass(frozen=True)
class Delta:
    """What turns weights of version ``base`` into those of ``version``.

    Attributes:
        base: ``NOTHING`` for a snapshot.
        version: after it.
        manifest: fingerprint of names, shapes and types; both sides have to agree.
        buckets: (checksum, compressed changes) each.
    """

    base: int
    version: int
    manifest: str
    buckets: tuple[tuple[int, bytes], ...]

    @property
    def size(self) -> int:
        """Bytes on the wire, nearly."""
        return sum(len(data) + 8 for _, data in self.buckets)

    def pack(self) -> bytes:
        """As one message."""
        head = {
            "base": self.base,
            "version": self.version,
            "manifest": self.manifest,
            "buckets": [[crc, len(data)] for crc, data in self.buckets],
        }
        text = json.dumps(head).encode()
        return b"".join([_HEAD.pack(len(text), zlib.crc32(text)), text, *(data for _, data in self.buckets)])

    @classmethod
    def unpack(cls, message: bytes) -> Delta:
        """What ``pack`` made.

        Raises:
            CorruptDelta: it is cut short or no delta at all.
        """
        try:
            length, crc = _HEAD.unpack_from(message)
            at, buckets = _HEAD.size + length, []
            text = message[_HEAD.size : at]
            if zlib.crc32(text) != crc:
                raise CorruptDelta("the checksum of a delta's head is wrong")
            head = json.loads(text)
            for crc, size in head["buckets"]:
                buckets.append((int(crc), message[at : at + size]))
                at += size
            if at != len(message):
                raise CorruptDelta(f"a delta of {at} bytes has {len(message)}")
            return cls(int(head["base"]), int(head["version"]), str(head["manifest"]), tuple(buckets))
        except (struct.error, ValueError, KeyError, TypeError) as error:
            raise CorruptDelta(f"no delta: {error}") from error


def manifest_of(weights: Weights) -> str:
    """Fingerprint of names, shapes and types, in their order."""
    text = json.dumps([[name, list(t.shape), str(t.dtype)] for name, t in weights.items()])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def difference(before: Weights | None, after: Weights, base: int, version: int) -> Delta:
    """What turns ``before`` (None: nothing) into ``after``.

    Args:
        before: weights of version ``base``.
        after: weights of ``version``, of the same names, shapes and types.
        base: of ``before``; ``NOTHING`` without.
        version: of ``after``.

    Raises:
        UserError: they are of different models.
    """
    manifest = manifest_of(after)
    if before is not None and manifest_of(before) != manifest:
        raise UserError("weights of two different models cannot be told apart sparsely: send a snapshot")
    # What there is to gain is in the entropy coder, not in finding repetitions.
    press = zstandard.ZstdCompressor(level=1)
    buckets = []
    for names in _bucketed(after):
        parts = []
        for alike in _by_type(after, names):
            now = _joined_up(after, alike)
            then = np.zeros_like(now) if before is None else _joined_up(before, alike)
            moved = now - then  # modulo the width: lossless
            parts += [_changes(moved[members]) for members in _classes(then, after[alike[0]].dtype)]
        data = press.compress(b"".join(parts))
        buckets.append((zlib.crc32(data), data))
    return Delta(NOTHING if before is None else base, version, manifest, tuple(buckets))


def apply(weights: Weights, delta: Delta, version: int) -> int:
    """Change ``weights`` in place; returns their new version. Nothing is changed unless all of the delta is good.

    Args:
        weights: of ``version``, on the CPU.
        delta: from ``difference``.
        version: of ``weights``; ``NOTHING`` = whatever is in them does not count.

    Raises:
        UserError: of another model.
        StaleWeights: from another version.
        CorruptDelta: damaged on the way.
    """
    if manifest_of(weights) != delta.manifest:
        raise UserError(
            "the weights that arrive are of another model than those here: the same code and configuration have to run on "
            "both sides"
        )
    if delta.base not in (NOTHING, version):
        raise StaleWeights(f"changes from version {delta.base}, and here is {version}")
    unpress = zstandard.ZstdDecompressor()
    groups = list(_bucketed(weights))
    if len(groups) != len(delta.buckets):
        raise CorruptDelta(f"{len(delta.buckets)} buckets, {len(groups)} expected")
    fresh: dict[str, np.ndarray] = {}
    for names, (crc, data) in zip(groups, delta.buckets, strict=True):
        if zlib.crc32(data) != crc:
            raise CorruptDelta("a bucket's checksum is wrong")
        try:
            raw, at = unpress.decompress(data), 0
            for alike in _by_type(weights, names):
                now = _joined_up(weights, alike)
                if delta.base == NOTHING:
                    now[:] = 0
                for members in _classes(now, weights[alike[0]].dtype):
                    moved, at = _changed(len(members), now.dtype, raw, at)
                    now[members] += moved
                ends = np.cumsum([weights[name].numel() for name in alike])
                fresh |= dict(zip(alike, np.split(now, ends[:-1]), strict=True))
        except (zstandard.ZstdError, struct.error, ValueError, IndexError) as error:
            raise CorruptDelta(f"a bucket does not unpack: {error}") from error
    for name, values in fresh.items():
        _whole(weights[name])[:] = values
    return delta.version


# ---- numbers of one type --------------------------------------------------------------------------------

_CLASS = struct.Struct("<BBQ")
"""Every difference (1) or changed ones (0), bytes per gap, how many of these follow."""


def _whole(tensor: Tensor) -> np.ndarray:
    """The tensor's memory as whole numbers [n] of its own width."""
    flat = tensor.detach().reshape(-1)
    if not tensor.is_contiguous():
        raise UserError("weights have to be contiguous to be synchronised")
    return flat.view(torch.uint8).numpy().view(_WIDTHS[tensor.element_size()])


def _by_type(weights: Weights, names: list[str]) -> list[list[str]]:
    """``names`` in groups of one type each."""
    groups: dict[torch.dtype, list[str]] = {}
    for name in names:
        groups.setdefault(weights[name].dtype, []).append(name)
    return list(groups.values())


def _joined_up(weights: Weights, names: list[str]) -> np.ndarray:
    """The numbers of all of them, one after the other; a copy."""
    return np.concatenate([_whole(weights[name]) for name in names])


def _classes(values: np.ndarray, dtype: torch.dtype) -> list[np.ndarray]:
    """Indices of ``values`` by their exponent, in order within each; of whole numbers a single class."""
    below, bits = _EXPONENTS.get(dtype, (0, 0))
    exponents = ((values >> below) & (2**bits - 1)).astype(np.uint8 if bits <= 8 else np.uint16)
    order = np.argsort(exponents, kind="stable")
    return [members for members in np.split(order, np.cumsum(np.bincount(exponents))[:-1]) if len(members)]


def _changes(moved: np.ndarray) -> bytes:
    """Differences [n], most of them zero or near it."""
    where = np.flatnonzero(moved)
    if len(where) > DENSE * len(moved):
        return _CLASS.pack(1, 0, len(moved)) + _planes(_folded(moved))
    gaps = np.diff(where, prepend=-1)
    most = int(gaps.max()) if len(gaps) else 0
    width = 1 if most < 2**8 else 2 if most < 2**16 else 4 if most < 2**32 else 8
    numbers = _planes(gaps.astype(_WIDTHS[width])) + _planes(_folded(moved[where]))
    return _CLASS.pack(0, width, len(where)) + numbers


def _changed(count: int, dtype: np.dtype, raw: bytes, at: int) -> tuple[np.ndarray, int]:
    """The ``count`` differences that begin at byte ``at`` of ``raw``, and where they end."""
    dense, width, sent = _CLASS.unpack_from(raw, at)
    at += _CLASS.size
    if dense:
        if sent != count:
            raise ValueError("another number of differences than of weights")
        folded, at = _joined(raw, at, count, dtype.itemsize)
        return _unfolded(folded), at
    gaps, at = _joined(raw, at, sent, width)
    folded, at = _joined(raw, at, sent, dtype.itemsize)
    where = np.cumsum(gaps.astype(np.int64)) - 1
    if len(where) and where[-1] >= count:
        raise ValueError("an index lies outside its class")
    moved = np.zeros(count, dtype)
    moved[where] = _unfolded(folded)
    return moved, at


def _folded(moved: np.ndarray) -> np.ndarray:
    """0, -1, 1, -2, ... as 0, 1, 2, 3, ...: the upper bytes of small differences are zero, whichever way they go."""
    signed = moved.view(f"i{moved.itemsize}")
    return ((signed << 1) ^ (signed >> (8 * moved.itemsize - 1))).view(moved.dtype)


def _unfolded(folded: np.ndarray) -> np.ndarray:
    return (folded >> 1) ^ (~(folded & 1) + folded.dtype.type(1))


def _planes(values: np.ndarray) -> bytes:
    """Lowest bytes first, then the next: those of small numbers compress to nothing."""
    return np.ascontiguousarray(values).view(np.uint8).reshape(len(values), values.itemsize).T.tobytes()


def _joined(raw: bytes, at: int, count: int, width: int) -> tuple[np.ndarray, int]:
    end = at + count * width
    planes = np.frombuffer(raw[at:end], np.uint8)
    if len(planes) != count * width:
        raise ValueError("cut short")
    joined = np.ascontiguousarray(planes.reshape(width, count).T)
    return joined.reshape(-1).view(_WIDTHS[width]), end


def _bucketed(weights: Weights) -> Iterator[list[str]]:
    """Names of the tensors of each bucket."""
    names: list[str] = []
    size = 0
    for name, tensor in weights.items():
        if names and size + tensor.nbytes > BUCKET:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.nbytes
    if names:
        yield names
