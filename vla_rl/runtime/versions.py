"""What a result was made with: versions, machine, peak memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "lerobot", "transformers", "mani_skill", "sapien", "robosuite", "metaworld", "mujoco")
PACKAGES += ("gymnasium", "tensordict", "torchrl", "numpy", "hydra-core", "av")


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


def machine() -> dict[str, str]:
    """The hardware and system, in words: processor, cores, memory, graphics, operating system."""
    import psutil

    from vla_rl.runtime.threads import cpu_budget

    found = {
        "processor": _cpu_model(),
        "cores": f"{cpu_budget()} usable of {os.cpu_count()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "system": f"{_system()}, Linux {platform.release()}",
    }
    gpu = _gpu()
    return found | ({"graphics": gpu} if gpu else {"graphics": "no CUDA device"})


def _gpu() -> str | None:
    torch = sys.modules.get("torch")  # not imported for this alone: it takes seconds
    if torch is None or not torch.cuda.is_available():
        return None
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{names.count(name)} x {name}" for name in sorted(set(names)))


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()


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

    Args:
        period: seconds between two samples, at least. What belongs to a child alone the kernel counts page by page: where there are
            many large children, samples are so far apart that they take a hundredth of a core.
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
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            began = time.thread_time()
            self._peak = max(self._peak, self._now())
            self._stop.wait(max(self.period, 100 * (time.thread_time() - began)))

    @staticmethod
    def _now() -> float:
        import psutil

        total = 0
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            try:
                # Unique memory of children plus ours: shared pages are counted once.
                mine = process is me
                total += process.memory_info().rss if mine else process.memory_full_info().uss
            except psutil.Error:
                continue
        return total / 2**20

    def peak_mb(self) -> float:
        """Largest total so far, MiB."""
        self._peak = max(self._peak, self._now())
        return self._peak
