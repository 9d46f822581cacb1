"""A safetensors file, written whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vla_rl.errors import UserError


def settle(temporary: Path, path: Path) -> None:
    """Rename a finished file into place, on disk before anybody sees it."""
    with open(temporary, "rb") as handle:
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def unwritten(what: str, error: Exception, remedy: str = "free some") -> UserError:
    """The error of a file that could not be written.

    Args:
        what: it and where.
        error: what happened.
        remedy: when the device is full.
    """
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space" in str(error)
    why = f"no space left on the device: {remedy}" if full else str(error).splitlines()[0]
    return UserError(f"cannot write {what}: {why}")


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    what: str,
    *,
    remedy: str = "free some",
    metadata: dict[str, str] | None = None,
) -> None:
    """Write ``path``; its folder is made.

    Args:
        path: of the file.
        tensors: any device, any layout.
        what: what it is and where, for the error.
        remedy: when the device is full.
        metadata: of the header.

    Raises:
        UserError: no space left, or not writable; what was there before is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, metadata)
        settle(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise unwritten(what, error, remedy) from error
