"""``vla-rl bench control``: the command stream as an independent process sees it, while a VLA infers beside it.

- ``period_p99_ms``, ``period_max_ms``: how far the interval between two commands is from the nominal one.
- ``stop_ms``: from a person's stop until the commanded velocity is zero, less the braking time that the limits ask for.
- ``stale_hold_ms``: from the moment the newest message of a stream is too old until the arm is braking.
"""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from real.bench.load import Inference, Wander
from real.bench.recorder import read
from real.contract import RobotContract, load_contract
from real.nodes import Nodes, safety, sim_arm
from real.robot_env import RobotEnv, RobotFault
from real.ros2 import Link
from real.safety_node import RESET, STOP, STOP_BUTTON, describe
from vla_rl.config import compose
from vla_rl.errors import UserError
from vla_rl.runtime.metrics import write_json

LIMITS = {"period_p99_ms": 3.0, "period_max_ms": 20.0, "stop_ms": 100.0, "stale_hold_ms": 150.0}
"""What each row may be at most."""

ROBOT = "sim_arm"
"""Only there can streams be broken at will."""

STALE = ("joint states", "camera", "target")
AWAY = 0.7
"""Seconds for which a stream is stopped."""


def run(overrides: list[str]) -> int:
    """Measure; exit code 1: a limit is exceeded."""
    config = compose("bench_control", overrides)
    contract, out = load_contract(ROBOT), Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    logs = Path(config.work)
    for old in logs.glob("*"):
        old.unlink()
    from vla_rl.runtime.threads import set_threads

    set_threads(1)
    with contextlib.ExitStack() as stack:
        nodes = stack.enter_context(Nodes(logs))
        nodes.start("sim_arm", sim_arm())
        nodes.start("safety", safety(ROBOT))
        nodes.start("recorder", [sys.executable, "-m", "real.bench.recorder", ROBOT, str(logs)])
        env = RobotEnv(ROBOT, max_episode_steps=10**6)
        stack.callback(env.close)
        trial = Trials(env, config.seed)
        stack.callback(trial.close)
        load = stack.enter_context(Inference(config.vla or "", env))
        env.reset(seed=config.seed)
        measured = trial.move(config.seconds)
        inferences = load.count / config.seconds
        stops = [trial.stop("service" if k % 2 else "button") for k in range(config.stops)]
        stales = [(kind, trial.stale(kind)) for k in range(config.stales) for kind in [STALE[k % len(STALE)]]]
        time.sleep(1.0)
    table, events = read(logs, len(contract.joints))
    report = analyse(contract, table, events, measured, stops, stales)
    report["inferences_per_s"] = inferences
    write_json(out / "results.json", report)
    picture(report["errors_ms"], out / "period.png")
    for row in report["rows"]:
        print(f"{row['name']:<16} {row['ours']:8.2f}   at most {row['at_most']:g}")
    print(f"the VLA inferred {inferences:.1f} times a second beside it; wrote {out / 'results.json'}")
    return int(any(row["ours"] > row["at_most"] for row in report["rows"]))


class Trials:
    """Moves the arm and disturbs it, from a node of its own.

    Args:
        env: the robot, before its first reset.
        seed: of goals and moments.
    """

    def __init__(self, env: RobotEnv, seed: int) -> None:
        from std_msgs.msg import Bool

        self.env, self.wander, self.random = env, Wander(env, seed), random.Random(seed)
        self.link = Link("vla_rl_person")
        self.button, self.kind = self.link.publisher(STOP_BUTTON, Bool), Bool

    def move(self, seconds: float) -> tuple[float, float]:
        """Step for a while; returns when that was."""
        env, began = self.env, self.link.now()
        observation = env._observation
        while self.link.now() - began < seconds:
            observation = env.step(self.wander(observation))[0]
        return began, self.link.now()

    def stop(self, how: str) -> float:
        """Stop a motion, wait, reset; returns the moment of the stop."""
        self.move(self.random.uniform(0.8, 1.3))
        began = self.link.now()
        if how == "service":
            threading.Thread(target=self.link.pull, args=(STOP,), daemon=True).start()
        else:
            self.button.publish(self.kind(data=True))
        with contextlib.suppress(RobotFault):
            self.move(5.0)
        until = time.monotonic() + 10
        while describe(self.env.safety)[0] == "stopped" and time.monotonic() < until:
            try:
                self.link.pull(RESET)
            except UserError:
                time.sleep(0.1)  # still braking
            time.sleep(0.15)
        self.env.reset()
        return began

    def stale(self, kind: str) -> float:
        """Make a stream stale for a moment, while moving; returns when that was asked for."""
        self.move(self.random.uniform(0.8, 1.3))
        began = self.link.now()
        if kind == "target":
            time.sleep(AWAY)
        else:
            name, on = ("drop_states", 1.0) if kind == "joint states" else ("freeze_camera", True)
            timer = threading.Timer(AWAY, self.link.set_parameter, ("sim_arm", name, type(on)(0)))
            self.link.set_parameter("sim_arm", name, on)
            timer.start()
            self.move(AWAY)
            timer.join()
        self.move(0.5)
        return began

    def close(self) -> None:
        """Leave the network."""
        self.link.close()


def analyse(
    contract: RobotContract,
    table: dict[str, np.ndarray],
    events: list[dict[str, Any]],
    measured: tuple[float, float],
    stops: list[float],
    stales: list[tuple[str, float]],
) -> dict[str, Any]:
    """The four rows, and what they were made from."""
    arrival = table["arrival"]
    inside = (arrival >= measured[0]) & (arrival <= measured[1])
    errors = 1e3 * np.abs(np.diff(arrival[inside]) - 1 / contract.command.rate_hz)
    stopping = [stopped_after(contract, table, t) for t in stops]
    holding = [held_after(contract, events, kind, t) for kind, t in stales]
    values = {
        "period_p99_ms": float(np.percentile(errors, 99)),
        "period_max_ms": float(errors.max()),
        "stop_ms": max((s["reaction_ms"] for s in stopping), default=0.0),
        "stale_hold_ms": max((h["hold_ms"] for h in holding), default=0.0),
    }
    rows = [{"name": k, "ours": v, "at_most": LIMITS[k], "unit": "ms"} for k, v in values.items()]
    return {
        "rows": rows,
        "commands": int(inside.sum()),
        "errors_ms": {str(p): float(np.percentile(errors, p)) for p in (50, 90, 99, 99.9, 100)}
        | {"histogram": np.histogram(errors, bins=np.linspace(0, 20, 81))[0].tolist()},
        "stops": stopping,
        "stales": holding,
    }


def stopped_after(contract: RobotContract, table: dict[str, np.ndarray], when: float) -> dict[str, float]:
    """One stop: milliseconds until zero commanded velocity, those that braking needs, and the difference."""
    due, speed = table["due"], np.abs(table["velocity"]).max(1)
    k = max(0, int(np.searchsorted(due, when)) - 1)
    after = np.flatnonzero((due > when) & (speed < 1e-6))
    if not len(after):
        raise UserError("a stop did not stop the commanded motion")
    total = max(0.0, 1e3 * float(due[after[0]] - when))
    needed = 1e3 * braking(contract, table["velocity"][k], table["acceleration"][k])
    return {"total_ms": total, "braking_ms": needed, "reaction_ms": max(0.0, total - needed)}


def braking(contract: RobotContract, velocity: np.ndarray, acceleration: np.ndarray) -> float:
    """Least seconds to rest within the limits on acceleration and jerk."""
    import ruckig

    count = len(velocity)
    parameters = ruckig.InputParameter(count)
    parameters.control_interface = ruckig.ControlInterface.Velocity
    parameters.synchronization = ruckig.Synchronization.No
    parameters.current_velocity, parameters.current_acceleration = velocity, acceleration
    parameters.target_velocity = [0.0] * count
    parameters.max_acceleration, parameters.max_jerk = contract.limits.acceleration, contract.limits.jerk
    trajectory = ruckig.Trajectory(count)
    ruckig.Ruckig(count).calculate(parameters, trajectory)
    return float(trajectory.duration)


def held_after(
    contract: RobotContract, events: list[dict[str, Any]], kind: str, when: float
) -> dict[str, Any]:
    """One stale stream: milliseconds from too old, and from its last message, until safety held the arm."""
    found = next((e for e in events if e["time"] > when and e["mode"] == "hold"), None)
    if found is None:
        raise UserError(f"nothing held the arm when its {kind} fell silent")
    name, limit = {
        "joint states": ("joint_states", contract.joint_states.max_age),
        "target": ("target", contract.command.timeout),
    }.get(kind, ("", 0.0))
    if not name:
        name = next(iter(contract.cameras))
        limit = contract.cameras[name].max_age
    silent = 1e3 * (found["time"] - found["newest"][name])
    return {"stream": kind, "silent_ms": silent, "hold_ms": max(0.0, silent - 1e3 * limit)}


def picture(errors: dict[str, Any], path: Path) -> None:
    """Histogram of the period errors, logarithmic in counts."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counts = np.array(errors["histogram"])
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    axes.bar(np.linspace(0, 20, len(counts) + 1)[:-1], counts, width=20 / len(counts), align="edge")
    axes.axvline(errors["99"], color="tab:orange", label=f"99 %: {errors['99']:.2f} ms")
    axes.axvline(errors["100"], color="tab:red", label=f"worst: {errors['100']:.2f} ms")
    axes.set(yscale="log", xlabel="error of the command period, ms", ylabel="commands")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
