"""What a process frees stays with it: a page that comes anew from the system is filled with zeros first, and is a fault of its own."""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's ``mallopt``."""

KEPT = 256 * 2**20
"""Bytes of free memory at the heap's end from which on it is given back."""

MAPPED = 32 * 2**20
"""Bytes from which on a block is mapped by itself and given back when it is freed; glibc takes no more."""

CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""Environment variables by which whoever started the process has chosen already."""


def keep_freed_memory() -> bool:
    """Keep up to ``KEPT`` bytes of freed memory, in blocks below ``MAPPED``; False where the C library has no such choice, or the environment has made it.

    As it comes, glibc gives back what is free above some megabytes, so that the activations and gradients of every update
    are new pages: about a tenth of the time of residual TD3's update on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name in os.environ for name in CHOSEN):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, KEPT)) and bool(mallopt(M_MMAP_THRESHOLD, MAPPED))
