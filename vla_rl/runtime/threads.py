"""Explicit thread counts: two torch processes that each take every core run 20-90 times slower."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def prepare_process() -> None:
    """Environment variables that must be set before numpy and torch are imported; cheap."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(cpu_budget()))


def cpu_budget(cgroup: Path = CGROUP) -> int:
    """Cores this process may use: its affinity, and the tightest quota of its control groups (v1 and v2)."""
    cores = float(len(os.sched_getaffinity(0)))
    for folder in _groups(cgroup):
        try:
            if (folder / "cpu.max").is_file():
                quota, period = (folder / "cpu.max").read_text().split()[:2]
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text().strip()
                period = (folder / "cpu.cfs_period_us").read_text().strip()
            if quota not in ("max", "-1"):
                cores = min(cores, int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return max(1, int(cores))


def _groups(root: Path) -> list[Path]:
    """This process's control groups and all above them: a quota anywhere on the way up counts."""
    folders = {root, root / "cpu"}
    try:
        rows = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        rows = []
    for row in rows:
        _, controllers, path = row.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        place = base / path.strip("/")
        folders |= {place, *(p for p in place.parents if p.is_relative_to(base))}
    return sorted(folders)


def set_threads(count: int | None) -> int:
    """Torch's intra-op threads (between operators: 1), and the environment that child processes inherit.

    A process that asks for them is one that computes: what it frees it keeps, too (``keep_freed_memory``).

    Args:
        count: None = ``cpu_budget()``.

    Returns:
        The count in force.
    """
    import torch

    from vla_rl.runtime.memory import keep_freed_memory

    keep_freed_memory()
    count = count or cpu_budget()
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(count)
    torch.set_num_threads(count)
    if torch.get_num_interop_threads() != 1:
        try:
            torch.set_num_interop_threads(1)
        except RuntimeError:
            pass  # can only be chosen before torch's first parallel work
    return count


def set_cores(count: int | None) -> None:
    """Keep this thread, and all that it starts from now on, on the first ``count`` of its cores (None: all).

    A software renderer starts a thread for every core it sees, whatever the thread settings say.
    """
    if count is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
