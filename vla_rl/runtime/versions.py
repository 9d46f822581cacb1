"""What a result was made with: versions, machine, peak memory."""

from __future__ import annotations

import os
import platform
import subprocess
import threading
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "lerobot", "transformers", "mani_skill", "sapien", "robosuite", "metaworld", "mujoco")
PACKAGES += ("gymnasium", "tensordict", "torchrl", "numpy")


def versions() -> dict[str, str]:
    """Package versions, git commit, processor."""
    from vla_rl import __version__

    found = {"vla_rl": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found["cpu"] = f"{_cpu_model()} x {len(os.sched_getaffinity(0))}"
    commit = _commit()
    return found | ({"commit": commit} if commit else {})


def _cpu_model() -> str:
    try:
        for row in Path("/proc/cpuinfo").read_text().splitlines():
            if row.startswith("model name"):
                return row.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def _commit() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(here), "rev-parse", "--short", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


class MemoryWatch:
    """Peak resident memory of this process and its children, sampled in a thread.

    ``with MemoryWatch() as watch: ...; watch.peak_mb()``
    """

    def __init__(self, period: float = 1.0) -> None:
        self.period, self._peak = period, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._peak = max(self._peak, self._now())
            self._stop.wait(self.period)

    @staticmethod
    def _now() -> float:
        import psutil

        total = 0
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            try:
                info = process.memory_full_info()
                # Unique memory of children plus ours: shared pages are counted once.
                total += info.rss if process is me else info.uss
            except psutil.Error:
                continue
        return total / 2**20

    def peak_mb(self) -> float:
        """Largest total so far, MiB."""
        return max(self._peak, self._now())
