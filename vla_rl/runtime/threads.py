"""Explicit thread counts: two torch processes that each take every core run 20-90 times slower."""

from __future__ import annotations

import os


def prepare_process() -> None:
    """Environment variables that must be set before numpy and torch are imported; cheap."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(cpu_budget()))


def cpu_budget() -> int:
    """Cores this process may use (affinity and cgroup quota)."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = open("/sys/fs/cgroup/cpu.max").read().split()[:2]
        if quota != "max":
            cores = max(1, min(cores, int(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return cores


def set_threads(count: int | None) -> int:
    """Torch's intra-op threads; None = the budget. Returns the count."""
    import torch

    count = count or cpu_budget()
    torch.set_num_threads(count)
    return count
