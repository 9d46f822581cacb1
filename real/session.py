"""``vla-rl robot session``: episodes on a robot, recorded so that neither a crash nor a power cut loses them.

``<out>/dataset``: a LeRobotDataset (written when the session is complete; finished episodes lie in
``<out>/dataset.recording`` before that, each synced, and the steps of the one being played as well).
``<out>/log-NNN.mcap``: what went over the wire, one file per start. ``<out>/report.json``: how it went.
"""

from __future__ import annotations

import contextlib
import traceback
from pathlib import Path
from typing import Any

from real.commands import launched, policy_of
from real.contract import RobotContract, load_contract
from real.mcap_log import McapLog
from real.robot_env import RobotEnv, RobotFault
from real.ros2 import picture_type
from real.safety_node import STATE, TARGET
from vla_rl.config import build, compose
from vla_rl.data.record import record
from vla_rl.errors import UserError
from vla_rl.runtime.metrics import write_json, write_text
from vla_rl.runtime.progress import track

STOPS = "safety_stops.txt"


def run(overrides: list[str]) -> int:
    """Record; exit code 1: the robot stopped, and the same command goes on."""
    config = compose("robot_session", overrides)
    if not config.get("out"):
        raise UserError("out is not set: out=DIR names the session's folder")
    if config.launch not in ("auto", False):
        raise UserError(f"launch={config.launch}: choose from auto, false")
    contract, out = load_contract(config.env.robot), Path(config.out)
    from vla_rl.runtime.threads import set_threads

    set_threads(config.threads)
    with contextlib.ExitStack() as stack:
        if config.launch == "auto":
            stack.enter_context(launched(contract, out / "nodes", config.env.get("arguments") or ()))
        env: RobotEnv = build(config.env)
        stack.callback(env.close)
        policy = policy_of(config, env)
        log = McapLog(env.link, next_log(out), topics_of(contract)) if config.log else None
        if log is not None:
            stack.callback(log.close)
        # Called when the session ends in any way: each start adds to what the starts before have seen.
        stack.callback(lambda: keep_stops(out, env.stops))
        try:
            summary = play(config, env, policy, out, log)
        except UserError as error:
            if not isinstance(error, RobotFault):
                raise
            return _stopped(str(error))
        except Exception as error:  # a policy's: whatever it is, the steps before it are kept
            trace = out / "error.txt"
            write_text(trace, traceback.format_exc())
            return _stopped(f"{type(error).__name__}: {error} (see {trace}); the arm holds")
    more = {"robot": contract.name, "log_lost": log.lost if log else "", "safety_stops": stops_of(out)}
    write_json(out / "report.json", summary | more)
    print(f"{summary['successes']} of {summary['episodes']} episodes succeeded; {summary['frames']} steps")
    print(f"wrote {out / 'dataset'}")
    return 0


def keep_stops(out: Path, stops: list[str]) -> None:
    """Add why the safety node has stopped the arm to those of earlier starts."""
    if stops:
        write_text(out / STOPS, "".join(f"{reason}\n" for reason in [*stops_of(out), *stops]))


def stops_of(out: Path) -> list[str]:
    """Why the safety node has stopped the arm so far, one line each."""
    file = out / STOPS
    return file.read_text().splitlines() if file.is_file() else []


def _stopped(why: str) -> int:
    print(f"stopped: {why}")
    print("every finished step is kept; the same command goes on")
    return 1


def play(config: Any, env: RobotEnv, policy: Any, out: Path, log: McapLog | None) -> dict[str, Any]:
    """The episodes; the log is synced after each."""
    with track("session", config.episodes, unit="episode") as bar:

        def finished(seen: dict[str, Any]) -> None:
            bar.update(seen["episodes"], successes=seen["successes"])
            if log is not None and not log.lost:
                log.sync()

        return record(
            env,
            policy,
            config.episodes,
            out / "dataset",
            seed=config.seed,
            deterministic=True,
            progress=finished,
            policy_id=str(config.policy.get("path") or config.policy.get("_target_")),
            journal=True,
        )


def next_log(out: Path) -> Path:
    """``log-000.mcap``, or the next number that is free."""
    number = 0
    while any(out.glob(f"log-{number:03d}.mcap*")):
        number += 1
    return out / f"log-{number:03d}.mcap"


def topics_of(contract: RobotContract) -> dict[str, type]:
    """Everything the contract names, and what goes to and from the safety node."""
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
    from geometry_msgs.msg import PoseStamped
    from sensor_msgs.msg import JointState
    from std_msgs.msg import Bool, Float64MultiArray
    from trajectory_msgs.msg import JointTrajectory

    command = JointTrajectory if contract.command.kind == "joint_trajectory" else Float64MultiArray
    topics: dict[str, type] = {
        contract.joint_states.topic: JointState,
        contract.command.topic: command,
        TARGET: JointTrajectory,
        STATE: DiagnosticStatus,
        "/diagnostics": DiagnosticArray,
    }
    if contract.gripper is not None and contract.gripper.kind == "topic":
        topics[contract.gripper.topic] = Float64MultiArray
    for camera in contract.cameras.values():
        topics[camera.topic] = picture_type(camera)
    for stream in contract.objects.values():
        topics[stream.topic] = PoseStamped
    if contract.success is not None:
        topics[contract.success.topic] = Bool
    return topics
