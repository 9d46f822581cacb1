"""The run folder: configuration, metrics and checkpoints that survive ``kill -9`` at any instant.

A checkpoint is written under a temporary name, flushed to disk, listed in a manifest with sizes and checksums, and
renamed; older ones are removed only after that.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vla_rl.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
log = logging.getLogger("vla_rl.run")


class RunFolder:
    """``runs/<name>/``; use ``create`` or ``open``. Locked against a second process until ``close``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self._lock = open(path / ".lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise UserError(f"{path} is in use by another process: wait for it, or choose another run.name") from error

    @classmethod
    def create(cls, root: Path, name: str, config_yaml: str) -> RunFolder:
        """A new folder.

        Raises:
            UserError: it exists already, or cannot be made.
        """
        path = Path(root) / name
        if path.exists():
            raise UserError(f"{path} exists and is not overwritten: resume={path}, or choose another run.name")
        try:
            (path / "checkpoints").mkdir(parents=True)
            (path / "config.yaml").write_text(config_yaml)
        except OSError as error:
            raise UserError(f"cannot create {path}: {error.strerror}: choose another run.root") from error
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing folder, to resume it."""
        path = Path(path)
        (path / "checkpoints").mkdir(exist_ok=True)
        for leftover in (path / "checkpoints").glob(".tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        return cls(path)

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    # ---- metrics ----------------------------------------------------------------------------------------

    def log(self, step: int, **values: Any) -> None:
        """Append one line to ``metrics.jsonl``."""
        with open(self.metrics, "a") as file:
            file.write(json.dumps({"step": step} | values) + "\n")

    def truncate_metrics(self, step: int) -> None:
        """Drop lines after ``step`` (they belong to what a crash undid)."""
        kept = [row for row in read_metrics(self.metrics) if row["step"] <= step]
        temporary = self.metrics.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        temporary.replace(self.metrics)

    # ---- checkpoints ------------------------------------------------------------------------------------

    def save_checkpoint(self, step: int, writer: Callable[[Path], None], keep: int = 2) -> Path:
        """Let ``writer`` fill a folder, then make it ``checkpoints/<step>`` in one rename.

        Raises:
            UserError: no space left; earlier checkpoints are intact.
        """
        final = self.checkpoints / f"{step:09d}"
        temporary = self.checkpoints / f".tmp-{step:09d}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            writer(temporary)
            _write_manifest(temporary)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if error.errno == errno.ENOSPC:
                raise UserError(f"no space left for a checkpoint in {self.path}: free some and resume={self.path}") from error
            raise
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        _sync(self.checkpoints)
        for old in sorted(self.checkpoints.glob("[0-9]*"))[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint that verifies; broken ones are skipped with a warning."""
        return self.latest_in(self.path)

    @staticmethod
    def latest_in(run: Path) -> Path | None:
        """As ``latest_checkpoint``, without opening the run."""
        for folder in sorted((run / "checkpoints").glob("[0-9]*"), reverse=True):
            try:
                verify_checkpoint(folder)
                return folder
            except UserError as error:
                log.warning("%s; trying the one before", error)
        return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _crc(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def _write_manifest(folder: Path) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    content = {
        "format": FORMAT,
        "files": {str(p.relative_to(folder)): [p.stat().st_size, _crc(p)] for p in files},
    }
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps(content))
    for path in [*files, manifest, *(p for p in folder.rglob("*") if p.is_dir()), folder]:
        _sync(path)


def verify_checkpoint(folder: Path) -> None:
    """Check format, sizes and checksums.

    Raises:
        UserError: naming the file that is missing, truncated or changed, or the other format.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not a complete checkpoint ({MANIFEST} is missing or broken)") from error
    if content.get("format") != FORMAT:
        raise UserError(f"{folder} has checkpoint format {content.get('format')}, this version reads {FORMAT}")
    for name, (size, crc) in content["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise UserError(f"{path} is missing or truncated: use an earlier checkpoint")
        if _crc(path) != crc:
            raise UserError(f"{path} is damaged: use an earlier checkpoint")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a ``metrics.jsonl``; a torn last line is left out."""
    rows = []
    if path.is_file():
        for text in path.read_text().splitlines():
            try:
                rows.append(json.loads(text))
            except ValueError:
                continue
    return rows
