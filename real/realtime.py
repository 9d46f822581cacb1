"""A loop that must be on time asks the machine for it."""

from __future__ import annotations

import gc
import os
import sys


def prefer_realtime(priority: int = 20, *, all_threads: bool = False) -> str:
    """Real-time priority for this thread where it is allowed, else a high one; no garbage collection of what is old.

    For a loop that sleeps most of the time, never for one that computes. Children do not inherit it.

    Args:
        priority: 1..99.
        all_threads: those of the network and the executor too (Linux).

    Returns:
        What was granted, for the log.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(0.0005)  # an executor's thread gives the interpreter back ten times as soon
    try:
        threads = [int(t) for t in os.listdir("/proc/self/task")] if all_threads else [0]
        for thread in threads:
            os.sched_setscheduler(thread, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
        return f"real-time priority {priority}"
    except (AttributeError, PermissionError, OSError):
        pass
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -10)
        return "priority -10 (no real-time scheduling here)"
    except (AttributeError, PermissionError, OSError):
        return "ordinary priority (grant rtprio in /etc/security/limits.conf for a steadier stream)"
