"""A loop that must be on time asks the machine for it."""

from __future__ import annotations

import gc
import os


def prefer_realtime(priority: int = 20) -> str:
    """Real-time priority for this thread where it is allowed, else a high one; no garbage collection of what is old.

    For a loop that sleeps most of the time, never for one that computes. Children do not inherit it.

    Returns:
        What was granted, for the log.
    """
    gc.collect()
    gc.freeze()
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
        return f"real-time priority {priority}"
    except (AttributeError, PermissionError, OSError):
        pass
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -10)
        return "priority -10 (no real-time scheduling here)"
    except (AttributeError, PermissionError, OSError):
        return "ordinary priority (grant rtprio in /etc/security/limits.conf for a steadier stream)"
