"""``vla-rl robot run``: episodes of a policy on a robot, counted, timed and reported."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from real.contract import load_contract
from real.nodes import Nodes, safety, sim_arm
from real.robot_env import RobotEnv, RobotFault
from real.ros2 import Link
from real.safety_node import STATE
from vla_rl.config import build, compose
from vla_rl.errors import UserError
from vla_rl.runtime.metrics import write_json
from vla_rl.stats import summary

LOOK = 4.0
"""Seconds given to nodes that run already to be discovered; only missing ones cost all of it."""


def run(overrides: list[str]) -> int:
    """Run episodes; writes ``report.json``. Exit code 1: the robot stopped before the last episode."""
    config = compose("robot_run", overrides)
    if config.launch not in ("auto", False):
        raise UserError(f"launch={config.launch}: choose from auto, false")
    contract = load_contract(config.env.robot)
    out = Path(config.out or f"runs/robot-{time.strftime('%Y%m%d-%H%M%S')}")
    if (out / "report.json").exists():
        raise UserError(f"{out}/report.json exists: name another folder with out=")
    from vla_rl.runtime.threads import set_threads

    set_threads(config.threads)
    with contextlib.ExitStack() as stack:
        if config.launch == "auto":
            stack.enter_context(launched(contract, out, config.env.get("arguments") or ()))
        env: RobotEnv = build(config.env)
        stack.callback(env.close)
        policy = policy_of(config, env)
        results, fault = episodes(env, policy, config.episodes, config.seed)
        report = report_of(env, results, fault)
    write_json(out / "report.json", report)
    low, high = report["wilson95"]
    print(
        f"success {report['successes']}/{report['episodes']} (95 % interval {100 * low:.1f}-{100 * high:.1f} %)"
    )
    print(
        f"control steps late by {report['late_p99_ms']:.1f} ms (99 %), {report['late_max_ms']:.1f} ms at most"
    )
    print(f"report {out / 'report.json'}")
    if fault:
        print(f"stopped before episode {len(results) + 1}: {fault}")
    return 1 if fault else 0


@contextlib.contextmanager
def launched(contract: Any, logs: Path, arguments: Sequence[str] = ()) -> Iterator[Nodes]:
    """The nodes of a contract that nobody runs yet; they end with the block. ``arguments``: of the safety node."""
    from diagnostic_msgs.msg import DiagnosticStatus
    from sensor_msgs.msg import JointState

    link = Link("vla_rl_launch")
    joints = link.listen(contract.joint_states.topic, JointState)
    state = link.listen(STATE, DiagnosticStatus)
    joints.wait(0, LOOK)
    state.wait(0, LOOK)
    if state.newest is None and link.rival(STATE):
        state.wait(0, 2 * LOOK)  # it is there, and not yet heard
    arm, guarded = joints.newest is not None, state.newest is not None
    link.close()
    with Nodes(logs) as nodes:
        if not arm:
            if contract.name != "sim_arm":
                raise UserError(
                    f"{contract.joint_states.topic} is silent: start the driver of {contract.name}"
                )
            print("starting the simulated arm", flush=True)
            nodes.start("sim_arm", sim_arm())
        if not guarded:
            print("starting the safety node", flush=True)
            nodes.start("safety", safety(contract.name, arguments))
        yield nodes


def policy_of(config: Any, env: RobotEnv) -> Any:
    """The policy that ``config.policy`` names, for this robot, and who may take over."""
    from vla_rl.policies.intervened import Intervened
    from vla_rl.policies.load import load_policy, load_teleoperator

    policy, operator = load_policy(config.policy, env), load_teleoperator(config.get("teleop"), env)
    return policy if operator is None else Intervened(policy, operator)


def episodes(env: RobotEnv, policy: Any, count: int, seed: int) -> tuple[list[dict[str, Any]], str]:
    """Run ``count`` episodes; returns those that ended, and why it stopped early (empty if it did not)."""
    import torch

    from vla_rl.rollout.collector import Collector
    from vla_rl.runtime.progress import track

    torch.manual_seed(seed)
    results: list[dict[str, Any]] = []
    taken = 0

    def count_taken(frames: Any, _: Any) -> None:
        nonlocal taken
        taken += int((frames["intervention"] & ~frames["final"]).sum())

    collector = Collector(env, policy, lambda number, _: seed + number, sink=count_taken)
    try:
        with track("robot", count, unit="episode") as bar:
            collector.begin()
            while len(results) < count:
                for episode in collector.step(deterministic=True):
                    one = {"seed": episode.seed, "success": episode.success, "steps": episode.steps}
                    results.append(one | {"interventions": taken})
                    taken = 0
                    bar.update(len(results))
    except RobotFault as fault:
        return results, str(fault)
    return results, ""


def report_of(env: RobotEnv, results: list[dict[str, Any]], fault: str) -> dict[str, Any]:
    """Success with its interval, timing, and every episode."""
    late = 1e3 * np.array(env.lateness or [0.0])
    return summary([r["success"] for r in results], [env.env_spec.id] * len(results)) | {
        "robot": env.contract.name,
        "late_p99_ms": float(np.percentile(late, 99)),
        "late_max_ms": float(late.max()),
        "missed_periods": env.ticker.missed,
        "intervention_share": sum(r["interventions"] for r in results)
        / max(1, sum(r["steps"] for r in results)),
        "safety_stops": list(env.stops),
        "fault": fault,
        "each": results,
    }
