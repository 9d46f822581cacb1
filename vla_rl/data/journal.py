"""Steps of an episode on disk as they happen: after a crash everything up to the last finished step is there.

A journal is a run of records, each with its length and checksum; whatever follows the last whole one is dropped when it
is read. ``kill -9`` loses nothing that ``append`` has returned from; a power cut loses at most what ``every`` allows.
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from vla_rl.data.spool import disk_errors, fsync_path
from vla_rl.errors import UserError

MAGIC = b"vlrj"
HEAD = struct.Struct("<4sII")  # magic, length, crc32 of the payload


class Journal:
    """Appends steps; one writer.

    Args:
        path: of the file, which must not exist yet.
        every: seconds between syncs to the disk; 0 = at each step.

    Raises:
        UserError: it exists (read it first), or cannot be written.
    """

    def __init__(self, path: Path, every: float = 0.5) -> None:
        if path.exists():
            raise UserError(
                f"{path} is left from a session that was cut: recover it before a new episode begins"
            )
        self.path, self.every, self.steps = path, every, 0
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "xb", buffering=0)  # noqa: SIM115  (closed in close)
            fsync_path(path.parent)
        self._synced = time.monotonic()

    def append(self, arrays: dict[str, np.ndarray]) -> None:
        """One step. The same keys every time are not required.

        Raises:
            UserError: no space left; what was written before is whole.
        """
        payload = save({key: np.ascontiguousarray(value) for key, value in arrays.items()})
        record = HEAD.pack(MAGIC, len(payload), zlib.crc32(payload)) + payload
        with disk_errors(self.path):
            start = self._file.tell()
            try:
                written = self._file.write(record)
                while written < len(record):
                    written += self._file.write(record[written:])
                if time.monotonic() - self._synced >= self.every:
                    os.fsync(self._file.fileno())
                    self._synced = time.monotonic()
            except OSError:
                self._file.truncate(start)
                self._file.seek(start)
                raise
        self.steps += 1

    def close(self, *, delete: bool = False) -> None:
        """Sync; or delete it, once its episode is stored elsewhere."""
        if not self._file.closed:
            if not delete:
                os.fsync(self._file.fileno())
            self._file.close()
        if delete:
            self.path.unlink(missing_ok=True)
            fsync_path(self.path.parent)


def recover(path: Path) -> list[dict[str, np.ndarray]]:
    """Every whole step of a journal, in order; empty when there is none."""
    steps: list[dict[str, np.ndarray]] = []
    if not path.exists():
        return steps
    with open(path, "rb") as file:
        while len(head := file.read(HEAD.size)) == HEAD.size:
            magic, length, checksum = HEAD.unpack(head)
            payload = file.read(length) if magic == MAGIC else b""
            if len(payload) != length or zlib.crc32(payload) != checksum:
                break
            try:
                steps.append(load(payload))
            except SafetensorError:
                break
    return steps
