"""The processes of a fault campaign, and the person who watches them and puts them right again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from real.contract import load_contract
from real.nodes import Nodes, safety, sim_arm
from real.ros2 import Link
from real.safety_node import RESET, STATE, TARGET, describe
from vla_rl.config import ROOT
from vla_rl.errors import UserError

STARTING = 90.0
"""Seconds a session may take to start."""

TRIES = 3
"""Times that the person resets and gives the session's command, when it ends with a clear line again."""


class Stage:
    """Simulated arm, safety node, witness and a session, each a process; ``repair`` makes them all run again.

    Args:
        robot: contract's name.
        work: folder for logs.
        session: arguments of ``vla-rl robot session``.
    """

    def __init__(self, robot: str, work: Path, session: list[str]) -> None:
        from diagnostic_msgs.msg import DiagnosticStatus
        from sensor_msgs.msg import JointState, Joy
        from std_msgs.msg import String
        from trajectory_msgs.msg import JointTrajectory

        self.robot, self.work = robot, work
        self.contract = load_contract(robot)
        self.nodes = Nodes(work / "nodes")
        self.motion = work / "motion.f64"
        self.commands = {
            "sim_arm": sim_arm(log=self.motion),
            "safety": safety(robot),
            "recorder": [sys.executable, "-m", "real.bench.recorder", robot, str(work)],
        }
        self.session_command = [
            sys.executable,
            "-m",
            "vla_rl.cli",
            "robot",
            "session",
            *session,
            "env.stop_patience=0",
        ]
        self.session: subprocess.Popen | None = None
        self.starts = len(list(work.glob("session-*.log")))  # those of a stage before this one are kept
        self.steps = 0
        for name, command in self.commands.items():
            self.nodes.start(name, command)
        self.link = Link("vla_rl_person")
        self.state = self.link.listen(STATE, DiagnosticStatus)
        self.joints = self.link.listen(self.contract.joint_states.topic, JointState)
        self.link.listen(TARGET, JointTrajectory, self._count)
        from real.bench.unreliable import FAULT

        self.fault, self.String = self.link.publisher(FAULT, String), String
        self.joy, self.Joy = self.link.publisher("/joy", Joy), Joy

    def _count(self, message: Any) -> None:
        self.steps += message.header.frame_id.startswith("seed")

    # ---- the session ------------------------------------------------------------------------------------

    @property
    def log(self) -> Path:
        """Output of the newest start."""
        return self.work / f"session-{self.starts:03d}.log"

    def start_session(self) -> None:
        """The same command as ever."""
        self.starts += 1
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        with open(self.log, "wb") as log:
            self.session = subprocess.Popen(self.session_command, stdout=log, stderr=log, cwd=ROOT, env=env)

    def alive(self) -> bool:
        """Whether the session's process is there."""
        return self.session is not None and self.session.poll() is None

    def last_words(self) -> str:
        """What the newest start said last; all of it in one line if it died badly."""
        return self.words_of(self.log)

    @staticmethod
    def words_of(log: Path) -> str:
        """The same of any log."""
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if any("Traceback" in line for line in lines):
            return "Traceback: " + lines[-1]
        return next((line for line in reversed(lines) if "stopped" in line or "vla-rl:" in line), "")

    def playing(self, timeout: float, steps: int = 5) -> bool:
        """Wait until ``steps`` more steps have been taken, the last of them with the arm under way."""
        until, goal = time.monotonic() + timeout, self.steps + steps
        while time.monotonic() < until:
            if self.steps >= goal and self.state.age() < 0.3 and describe(self.state)[0] == "run":
                return True
            if not self.alive():
                return False
            time.sleep(0.02)
        return False

    def kill_session(self) -> None:
        """As a crash would."""
        assert self.session is not None
        self.session.send_signal(signal.SIGKILL)
        self.session.wait()

    # ---- the arm ----------------------------------------------------------------------------------------

    def set(self, name: str, value: Any) -> None:
        """A parameter of the simulated arm."""
        self.link.set_parameter("sim_arm", name, value, 10.0)

    def speed(self) -> float:
        """Fastest joint now, rad/s."""
        newest = self.joints.newest
        return float(np.abs(newest.message.velocity).max()) if newest is not None else 0.0

    def repair(self) -> None:
        """What the person at the arm does: start what is gone, reset a stop, give the session's command (again, if need be).

        Raises:
            UserError: it does not come back.
        """
        for name, command in self.commands.items():
            process = self.nodes.processes.get(name)
            if process is None or process.poll() is not None:
                self.nodes.start(name, command)
                self.state.wait(self.state.count, 10.0)
        for _ in range(TRIES):
            self._reset()
            if not self.alive():
                self.start_session()
            if self.playing(STARTING):
                return
            if self.alive() or "Traceback" in self.last_words() or not self.last_words():
                break
        raise UserError(f"the session does not come back: {self.last_words()}")

    def _reset(self) -> None:
        """End a latched stop, if there is one."""
        until, why = time.monotonic() + 20, ""
        self.state.wait(self.state.count, 5.0)
        while describe(self.state)[0] in ("stopped", "") and time.monotonic() < until:
            try:
                self.link.pull(RESET)
            except UserError as error:
                why = str(error)
            count = self.state.count
            self.state.wait(count + 1, 1.0)
        if describe(self.state)[0] == "stopped":
            raise UserError(f"the stop cannot be reset: {why}")

    def close(self) -> None:
        """End everything."""
        if self.alive():
            self.kill_session()
        self.link.close()
        self.nodes.close()
