"""Thread caps before anything imports torch; the tests' own helpers importable by name."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import pytest  # noqa: E402
from tqdm.std import TqdmDefaultWriteLock  # noqa: E402

# Otherwise a semaphore that forked processes share: killed by a test while it holds it, one would stop every progress
# bar of its worker from then on.
TqdmDefaultWriteLock.mp_lock = None

sys.path.insert(0, str(Path(__file__).parent / "data"))
sys.path.insert(0, str(Path(__file__).parent / "algorithms"))
sys.path.insert(0, str(Path(__file__).parent / "policies"))

TIMELESS = (
    "test_contract.py",
    "test_robots.py",
    "test_safety.py",
    "test_security.py",
    "test_console_guard.py",
)
"""Files of ``tests/real`` that no clock drives."""

SEVERAL = ("test_ray.py",)
"""Files whose tests start half a dozen processes and wait for what they do together."""


def pytest_collection_modifyitems(items):
    """The rest of ``tests/real`` runs in real time: ``make test`` gives it the machine to itself.

    On a shared machine that is not enough: a host that stalls for 150 ms stops the arm, as it should. Such a test has
    three tries, and pytest counts the reruns in its last line.
    """
    real = Path(__file__).parent / "real"
    for item in items:
        if real in item.path.parents and item.path.name not in TIMELESS:
            item.add_marker("realtime")
            item.add_marker(pytest.mark.flaky(reruns=2))
        elif item.path.name in SEVERAL:
            item.add_marker(pytest.mark.flaky(reruns=1))
    # The longest files first, so that no worker begins one when the others are done.
    longest = {i.path for i in items if (mark := i.get_closest_marker("timeout")) and mark.args[0] > 300}
    items.sort(key=lambda item: item.path not in longest)


def pytest_terminal_summary(terminalreporter):
    """Why a test was run again, which pytest-rerunfailures counts and does not say."""
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.section(f"run again: {report.nodeid}")
        terminalreporter.line(str(report.longrepr))
