"""An independent witness of the command stream: a process of its own that only listens.

``python -m real.bench.recorder ROBOT FOLDER`` writes ``commands.f64`` (rows of ``columns``), ``events.jsonl`` (when
safety's mode changed, and the newest stamp of every stream at that moment) and ``steps.f64`` (time, seed and step of
every target that ``RobotEnv.step`` sent).
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from real.contract import RobotContract, load_contract
from real.realtime import prefer_realtime
from real.ros2 import Link, picture_type, seconds
from real.safety import AHEAD
from real.safety_node import STATE, TARGET, describe
from vla_rl.errors import UserError


def columns(joints: int) -> list[str]:
    """Names of a row: when it came, the moment it speaks of, when it ends at rest, and the setpoint."""
    vectors = [f"{k}{i}" for k in ("position", "velocity", "acceleration") for i in range(joints)]
    return ["arrival", "due", "rest", *vectors]


class Recorder:
    """Keeps rows in memory until ``flush``.

    Args:
        contract: whose command topic carries joint trajectories.
        link: its node.
        folder: of the two files.

    Raises:
        UserError: a robot that takes bare positions: they have no velocity to measure.
    """

    def __init__(self, contract: RobotContract, link: Link, folder: Path) -> None:
        from diagnostic_msgs.msg import DiagnosticStatus
        from sensor_msgs.msg import JointState
        from trajectory_msgs.msg import JointTrajectory

        if contract.command.kind != "joint_trajectory":
            raise UserError(
                f"command.kind={contract.command.kind}: this benchmark needs joint_trajectory, whose messages say velocities"
            )
        self.contract, self.link, self.folder = contract, link, folder
        self._lock = threading.Lock()
        self.ahead = AHEAD / contract.command.rate_hz
        self.rows: list[list[float]] = []
        self.events: list[dict[str, Any]] = []
        self.steps: list[list[float]] = []
        self.mode = ("", "")
        self.streams = {"joint_states": link.listen(contract.joint_states.topic, JointState)}
        self.streams["target"] = link.listen(TARGET, JointTrajectory, self._count)
        for name, camera in contract.cameras.items():
            self.streams[name] = link.listen(camera.topic, picture_type(camera))
        self.state = link.listen(STATE, DiagnosticStatus, self._note)
        link.listen(contract.command.topic, JointTrajectory, self._keep)

    def _keep(self, message: Any) -> None:
        now, start = self.link.now(), seconds(message.header.stamp)
        offsets = [seconds(p.time_from_start) for p in message.points]
        k = int(np.argmin(np.abs(np.array(offsets) - self.ahead)))
        point = message.points[k]
        row = [now, start + offsets[k], start + offsets[-1]]
        with self._lock:
            self.rows.append([*row, *point.positions, *point.velocities, *point.accelerations])

    def _count(self, message: Any) -> None:
        words = message.header.frame_id.split()  # "seed 3 step 41"
        if len(words) == 4 and words[1].isdigit():
            with self._lock:
                self.steps.append([self.link.now(), float(words[1]), float(words[3])])

    def _note(self, _: Any) -> None:
        mode = describe(self.state)
        if mode != self.mode:
            self.mode = mode
            newest = {k: s.newest.stamp if s.newest is not None else None for k, s in self.streams.items()}
            with self._lock:
                event = {"time": self.link.now(), "mode": mode[0], "reason": mode[1], "newest": newest}
                self.events.append(event)

    def flush(self) -> None:
        """Append to the files."""
        with self._lock:
            rows, self.rows, events, self.events = self.rows, [], self.events, []
            steps, self.steps = self.steps, []
        for name, some in (("commands.f64", rows), ("steps.f64", steps)):
            if some:
                with open(self.folder / name, "ab") as handle:
                    np.array(some).tofile(handle)
        if events:
            with open(self.folder / "events.jsonl", "a") as handle:
                handle.writelines(json.dumps(event) + "\n" for event in events)


def read(folder: Path, joints: int) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """What a recorder wrote: arrays [N] or [N, joints] by name, and the events."""
    rows = np.fromfile(folder / "commands.f64").reshape(-1, len(columns(joints)))
    table = {"arrival": rows[:, 0], "due": rows[:, 1], "rest": rows[:, 2]}
    for i, name in enumerate(("position", "velocity", "acceleration")):
        table[name] = rows[:, 3 + i * joints : 3 + (i + 1) * joints]
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return table, events


def main() -> int:
    """Listen until terminated."""
    stopping = threading.Event()
    link = None
    try:
        contract, folder = load_contract(sys.argv[1]), Path(sys.argv[2])
        link = Link("vla_rl_witness")
        recorder = Recorder(contract, link, folder)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopping.set())
        print(f"listening; {prefer_realtime(30, all_threads=True)}", flush=True)
        while not stopping.wait(0.5):
            recorder.flush()
        recorder.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        if link is not None:
            link.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
