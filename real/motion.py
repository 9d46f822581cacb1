"""How the arm moves outside the task: home, to a saved posture, back along its own path. Targets go to the safety node."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from real.ros2 import Ticker
from real.safety_node import describe, read_joints

if TYPE_CHECKING:
    from real.robot_env import RobotEnv

HOMING = 20.0
"""Seconds that moving to a posture may take."""

ARRIVED = 0.01
"""rad from a posture, of every joint, at which the arm is there."""

STEP = 0.15
"""rad: how far ahead of the arm targets lie on the way to a posture."""


def joints_of(env: RobotEnv) -> np.ndarray:
    """[n] rad, as measured."""
    return read_joints(env._message(env.joints), env.contract.joints)


def go(env: RobotEnv, posture: np.ndarray, gripper: float | None, place: str) -> None:
    """Straight in joint space, until the arm is there; ``gripper`` None = left as it is.

    Raises:
        RobotFault: stopped by safety, joint states gone, or not there in time; it names the ``place``.
    """
    until = time.monotonic() + HOMING
    ticker = Ticker(env.link, env.ticker.period)
    while True:
        here = joints_of(env)
        gap = posture - here
        if np.abs(gap).max() < ARRIVED:
            return
        _watch(env, place, until)
        share = min(1.0, STEP / np.abs(gap).max())
        env._send(here + share * gap, gripper, label=place)
        ticker.wait()


def retrace(env: RobotEnv, path: Sequence[np.ndarray]) -> None:
    """Back along ``path`` (postures at control steps, oldest first) as fast as it was gone; the gripper is left alone.

    Raises:
        RobotFault: as ``go``.
    """
    until = time.monotonic() + HOMING + len(path) * env.ticker.period
    ticker = Ticker(env.link, env.ticker.period)
    for posture in reversed(path):
        _watch(env, "back", until)
        env._send(posture, None, label="back")
        ticker.wait()
    go(env, path[0], None, "back")


def _watch(env: RobotEnv, place: str, until: float) -> None:
    from real.robot_env import GUARD, PATIENCE, RobotFault

    if env._unguarded() > GUARD:
        env._guarded()
    age = env.joints.age()
    if abs(age) > PATIENCE:
        raise RobotFault(f"the arm cannot move {place}: joint states are {age:.1f} s old; it is at rest")
    mode, reason = describe(env.safety)
    if mode == "stopped":
        raise RobotFault(f"the arm cannot move {place}: stopped: {reason}")
    if time.monotonic() > until:
        raise RobotFault(f"the arm cannot move {place}: not there after {HOMING:g} s ({reason or mode})")
