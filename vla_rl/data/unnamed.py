"""Room for decoded pictures on disk instead of in memory: what is looked at often stays in memory by itself, the rest does not."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vla_rl.data.spool import disk_errors


def unnamed(folder: Path, shape: Sequence[int]) -> Tensor:
    """Zeros, uint8 ``shape``, in a file in ``folder`` that has lost its name: its space is free again when the process ends, however.

    Raises:
        UserError: the disk has not as much.
    """
    size = math.prod(shape)
    if not size:
        return torch.zeros(*shape, dtype=torch.uint8)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=".pictures-")
        try:
            os.posix_fallocate(
                handle, 0, size
            )  # a mapped file that finds no space later would end the process
            return torch.from_file(name, shared=True, size=size, dtype=torch.uint8).view(*shape)
        finally:
            os.close(handle)
            os.unlink(name)
