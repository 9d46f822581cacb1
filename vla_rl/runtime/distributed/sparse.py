"""Weights as what has changed since the receiver's version: lossless, compressed, checksummed (SparseRL-Sync).

An update of reinforcement learning moves few of a bfloat16 model's weights, and most of those by the last bit. Tensors are
taken for whole numbers of their own width; of each goes out where it changed (gaps between indices) and by how much (the
difference, modulo the width), or, where most of it changed, every difference. Buckets of some megabytes are compressed and
checksummed one by one. Against zeros the same encoding is a full snapshot.
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
"""Share of a tensor that has to change for all of its differences to be sent: gaps then cost more than zeros."""

NOTHING = -1
"""Version of a receiver that has no weights."""

_WIDTHS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
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
    press = zstandard.ZstdCompressor(level=3)
    buckets = []
    for names in _bucketed(after):
        parts = [_changes(None if before is None else _whole(before[n]), _whole(after[n])) for n in names]
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
            for name in names:
                now = _whole(weights[name])
                fresh[name], at = _changed(np.zeros_like(now) if delta.base == NOTHING else now, raw, at)
        except (zstandard.ZstdError, struct.error, ValueError, IndexError) as error:
            raise CorruptDelta(f"a bucket does not unpack: {error}") from error
    for name, values in fresh.items():
        _whole(weights[name])[:] = values
    return delta.version


# ---- one tensor -----------------------------------------------------------------------------------------

_TENSOR = struct.Struct("<BBQ")
"""Every difference (1) or changed ones (0), bytes per gap, how many changed."""


def _whole(tensor: Tensor) -> np.ndarray:
    """The tensor's memory as whole numbers [n] of its own width."""
    flat = tensor.detach().reshape(-1)
    if not tensor.is_contiguous():
        raise UserError("weights have to be contiguous to be synchronised")
    return flat.view(torch.uint8).numpy().view(_WIDTHS[tensor.element_size()])


def _changes(before: np.ndarray | None, after: np.ndarray) -> bytes:
    moved = after if before is None else after - before  # modulo the width: lossless
    where = np.flatnonzero(moved)
    if len(where) > DENSE * len(after):
        return _TENSOR.pack(1, 0, len(after)) + _planes(moved)
    gaps = np.diff(where, prepend=-1)
    most = int(gaps.max()) if len(gaps) else 0
    width = 1 if most < 2**8 else 2 if most < 2**16 else 4 if most < 2**32 else 8
    return _TENSOR.pack(0, width, len(where)) + _planes(gaps.astype(_WIDTHS[width])) + _planes(moved[where])


def _changed(values: np.ndarray, raw: bytes, at: int) -> tuple[np.ndarray, int]:
    """``values`` with the changes that begin at byte ``at`` of ``raw``, and where they end."""
    dense, width, count = _TENSOR.unpack_from(raw, at)
    at += _TENSOR.size
    if dense:
        moved, at = _joined(raw, at, count, values.itemsize)
        return values + moved, at
    gaps, at = _joined(raw, at, count, width)
    moved, at = _joined(raw, at, count, values.itemsize)
    where = np.cumsum(gaps.astype(np.int64)) - 1
    if len(where) and where[-1] >= len(values):
        raise ValueError("an index lies outside its tensor")
    values = values.copy()
    values[where] += moved
    return values, at


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
