"""Starts the nodes that belong together as processes of their own, and ends them with whoever started them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from vla_rl.config import ROOT
from vla_rl.errors import UserError

SIM_ARM = ROOT / "ros_ws/src/vla_rl_sim_arm/vla_rl_sim_arm/node.py"
PATIENCE = 60.0
"""Seconds a node may take to say that it runs."""


def safety(robot: str, arguments: Sequence[str] = ()) -> list[str]:
    """The safety node of a contract, as a command line; ``arguments`` as ROS takes them."""
    return [sys.executable, "-m", "real.safety_node", robot, *arguments]


def sim_arm(**parameters: object) -> list[str]:
    """The simulated arm, as a command line; see ``PARAMETERS`` in its ``node.py``."""
    flags = [x for key, value in parameters.items() for x in ("-p", f"{key}:={_literal(value)}")]
    return [sys.executable, str(SIM_ARM), *(["--ros-args", *flags] if flags else [])]


def _literal(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class Nodes:
    """Context manager: ``start`` processes; all end with the block, or with this process if it dies.

    Args:
        logs: folder for ``<name>.log``.
    """

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.processes: dict[str, subprocess.Popen] = {}

    def start(self, name: str, command: list[str]) -> subprocess.Popen:
        """Start and wait for its first line of output.

        Raises:
            UserError: it ended instead, with its last words.
        """
        process, path = self.spawn(name, command), self.logs / f"{name}.log"
        until = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < until:
            said = path.read_bytes().strip()
            if said and not said.startswith(b"error:"):
                return process
            time.sleep(0.05)
        words = path.read_text(errors="replace").strip().splitlines()
        if process.poll() is None:
            raise UserError(f"{name} says nothing after {PATIENCE:g} s, see {path}")
        raise UserError(
            f"{name} ended at once: {words[-1].removeprefix('error: ') if words else process.returncode}"
        )

    def spawn(self, name: str, command: list[str]) -> subprocess.Popen:
        """Start and do not wait."""
        self.logs.mkdir(parents=True, exist_ok=True)
        path = self.logs / f"{name}.log"
        env = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
        with open(path, "wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=ROOT, env=env, preexec_fn=die_with_parent
            )
        self.processes[name] = process
        return process

    def kill(self, name: str) -> None:
        """As a crash would: at once, without a last word."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def close(self) -> None:
        """Ask all to end, then make them."""
        processes, self.processes = list(self.processes.values()), {}
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


def die_with_parent() -> None:
    """Linux only; elsewhere a killed parent leaves its nodes running."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
