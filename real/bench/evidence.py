"""What a fault campaign left behind, read by code that took no part in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from real.bench.recorder import columns
from real.contract import RobotContract
from real.kinematics import ArmModel
from vla_rl.train import TRAIN_SEEDS

TOLERANCE = 0.01
"""Share by which a simulated motion may overshoot what was commanded."""

GAP = 0.015
"""Seconds between two commands above which they are not differentiated (a node was away)."""


def violations(contract: RobotContract, folder: Path) -> dict[str, int]:
    """How many commands (``commands.f64``) and simulated moments (``motion.f64``) exceed each limit."""
    limits, tool, n = contract.limits, contract.tool, len(contract.joints)
    lower, upper = np.array(limits.lower), np.array(limits.upper)
    velocity, acceleration = np.array(limits.velocity), np.array(limits.acceleration)
    rows = np.fromfile(folder / "commands.f64").reshape(-1, len(columns(n)))
    due, q, v, a = rows[:, 1], rows[:, 3 : 3 + n], rows[:, 3 + n : 3 + 2 * n], rows[:, 3 + 2 * n :]
    dt = np.diff(due)
    near = (dt > 1e-3) & (dt < GAP)
    jerk = np.abs(np.diff(a, axis=0))[near] / dt[near, None]
    moved = np.fromfile(folder / "motion.f64").reshape(-1, 1 + 3 * n + 2)
    joints, speeds = moved[:, 1 + n : 1 + 2 * n], moved[:, 1 + 2 * n : 1 + 3 * n]
    model = ArmModel(contract)
    low, high = np.array(tool.low), np.array(tool.high)
    places, motion = model.motion(q, v)
    tips = np.linalg.norm(motion, axis=1)

    def count(bad: np.ndarray) -> int:
        return int(bad.reshape(len(bad), -1).any(1).sum()) if len(bad) else 0

    return {
        "commanded_position": count((q < lower - 1e-9) | (q > upper + 1e-9)),
        "commanded_velocity": count(np.abs(v) > velocity * (1 + 1e-6)),
        "commanded_acceleration": count(np.abs(a) > acceleration * (1 + 1e-6)),
        "commanded_jerk": count(jerk > np.array(limits.jerk) * (1 + TOLERANCE)),
        "commanded_tool_speed": count(tips > tool.max_speed * (1 + 1e-6)),
        "commanded_workspace": count((places < low - 1e-6) | (places > high + 1e-6)),
        "simulated_position": count((joints < lower - 1e-3) | (joints > upper + 1e-3)),
        "simulated_velocity": count(np.abs(speeds) > velocity * (1 + TOLERANCE)),
        "not_finite": count(~np.isfinite(rows)) + count(~np.isfinite(moved)),
    }


def lost_steps(witness: Path, dataset: Path) -> tuple[list[dict[str, Any]], int]:
    """Episodes of ``dataset`` shorter than what the witness saw of them; and how many steps it saw."""
    from vla_rl.data.dataset import load_episodes

    rows = np.fromfile(witness).reshape(-1, 3)
    rows = rows[rows[:, 1] < TRAIN_SEEDS]  # those of training are counted by its checkpoint
    return shorter(rows, [episode.length for episode in load_episodes(dataset, images=False)]), len(rows)


def shorter(rows: np.ndarray, lengths: list[int]) -> list[dict[str, Any]]:
    """Of rows (time, episode, step): episodes that were kept shorter than they were played.

    Step k's target is sent when k steps are finished; all but the newest of them must have been kept.
    """
    lost = []
    for seed in np.unique(rows[:, 1]):
        expected = int(rows[rows[:, 1] == seed, 2].max()) - 1
        kept = lengths[int(seed)] if int(seed) < len(lengths) else 0
        if kept < expected:
            lost.append({"episode": int(seed), "kept": kept, "finished": expected, "lost": expected - kept})
    return lost
