"""Checkpoint folders that are whole or absent: temporary name, flushed, manifest with checksums, one rename.

``checkpoints/<step>`` is complete; ``.tmp-<step>`` is being written; ``.old-<step>`` is a complete one that is being
replaced by another of the same step, and counts as long as its successor is not there.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

from vla_rl.errors import UserError

FORMAT = 1
"""Version of the layout; a checkpoint of another one is refused, never guessed at."""

MANIFEST = "manifest.json"
NAME = re.compile(r"(?:\.old-)?(\d+)")
log = logging.getLogger("vla_rl.run")


def step_of(folder: Path) -> int:
    """The environment step of a checkpoint folder; -1 when its name is not that of a checkpoint."""
    match = NAME.fullmatch(folder.name)
    return int(match.group(1)) if match else -1


def folder_name(step: int) -> str:
    """Of the checkpoint of an environment step."""
    return f"{step:09d}"


def complete(checkpoints: Path) -> list[Path]:
    """Checkpoint folders that were once whole, newest first (not verified)."""
    if not checkpoints.is_dir():
        return []
    found = [p for p in checkpoints.iterdir() if p.is_dir() and step_of(p) >= 0]
    # Of one step, the new folder before the one it replaces.
    return sorted(found, key=lambda p: (step_of(p), not p.name.startswith(".")), reverse=True)


def save(
    checkpoints: Path,
    step: int,
    writer: Callable[[Path], None],
    keep: int = 2,
    spare: Path | None = None,
) -> Path:
    """Let ``writer`` fill a folder, then make it ``checkpoints/<step>``; afterwards remove all but ``keep``, and ``spare``.

    Folders of a later step are removed too: they are of a course that resuming from an earlier step has left.

    Raises:
        UserError: no space left; earlier checkpoints are intact and nothing partial remains.
    """
    final = checkpoints / folder_name(step)
    temporary = checkpoints / f".tmp-{step:09d}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        writer(temporary)
        _write_manifest(temporary, step)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_full(error):
            run = checkpoints.parent
            raise UserError(
                f"no space left for a checkpoint in {run}: free some, then resume={run} (earlier ones are kept)"
            ) from error
        raise
    aside = checkpoints / f".old-{step:09d}"
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
    temporary.rename(final)
    _sync(checkpoints)
    _prune(checkpoints, step, keep, spare)
    return final


def _prune(checkpoints: Path, step: int, keep: int, spare: Path | None) -> None:
    older = [p for p in complete(checkpoints) if step_of(p) < step]
    kept = {p.name for p in older[: max(1, keep) - 1]} | {folder_name(step)}
    kept |= {p.name for p in older if p == spare}
    for folder in complete(checkpoints):
        if folder.name not in kept:
            # Renamed first: a removal that is cut short must not leave something that looks complete.
            gone = checkpoints / f".tmp-gone-{folder.name}"
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def recover(checkpoints: Path) -> None:
    """Tidy up after a kill: remove partial folders, put back one whose replacement never came."""
    for leftover in checkpoints.glob(".tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for aside in checkpoints.glob(".old-*"):
        final = checkpoints / aside.name.removeprefix(".old-")
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(final)


def latest(checkpoints: Path) -> Path | None:
    """The newest checkpoint that verifies; broken ones are skipped with a warning."""
    for folder in complete(checkpoints):
        try:
            verify_checkpoint(folder)
            return folder
        except UserError as error:
            log.warning("%s; trying the one before", error)
    return None


def verify_checkpoint(folder: Path) -> None:
    """Check format, sizes and checksums.

    Raises:
        UserError: naming the file that is missing, truncated or changed, or the other format.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text())
        version, files = content["format"], dict(content["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is not a complete checkpoint ({MANIFEST} is missing or broken)") from error
    if version != FORMAT:
        raise UserError(
            f"{folder} has checkpoint format {version}, this version of vla_rl reads {FORMAT}: "
            "use the version that wrote it, or start a new run"
        )
    for name, (size, crc) in files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing: use an earlier checkpoint")
        if path.stat().st_size != size:
            raise UserError(f"{path} has {path.stat().st_size} of {size} bytes: use an earlier checkpoint")
        if _crc(path) != crc:
            raise UserError(f"{path} is damaged (checksum): use an earlier checkpoint")


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a full disk or quota.

    Libraries that write in native code (safetensors, torch) wrap it in their own types.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if not isinstance(error, UserError) and "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def check_free_disk(path: Path, need_mb: int) -> None:
    """Refuse to start what would run out of space.

    Args:
        path: where it will be written; the nearest existing parent is asked.
        need_mb: MiB that must be free.

    Raises:
        UserError: there is less.
    """
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free >> 20
    if free < need_mb:
        raise UserError(
            f"{free} MiB are free in {place}, a run needs {need_mb}: free some, or choose another run.root"
        )


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


def _write_manifest(folder: Path, step: int) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    sums = {str(p.relative_to(folder)): [p.stat().st_size, _crc(p)] for p in files}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"format": FORMAT, "step": step, "files": sums}))
    for path in [*files, manifest, *(p for p in folder.rglob("*") if p.is_dir()), folder]:
        _sync(path)
