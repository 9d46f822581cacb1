"""A latched stop in the middle of an episode: the episode is lost, the run is not, and only a person ends the stop.

Nothing here resets the safety node. It waits until somebody has: ``vla-rl robot reset``, the service
``/vla_rl/safety/reset`` or the console's button.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from real.safety_node import RESET, describe

if TYPE_CHECKING:
    from real.robot_env import RobotEnv

BLOCKED = "from its command"
"""In the reason of a stop that the policy has brought about, by pressing on something: the episode has failed. Any other
(a person's button, a second commander) says nothing of the policy: the episode is cut, as by a time limit."""

NOT_STARTED = "not started"
"""What a safety node says that nobody has started yet."""

AGAIN = 5
"""Stops in a row, on the way to the first step of an episode, after which the run ends."""

REMINDER = 60.0
"""Seconds between two lines that say what is waited for."""


def latched(env: RobotEnv) -> str:
    """Why the arm is stopped, or an empty string."""
    mode, reason = describe(env.safety)
    return reason or "unknown reason" if mode == "stopped" else ""


def verdict(reason: str, said: str) -> str:
    """What a stop makes of its episode: ``failure`` or ``cut``; ``failure`` or ``discard`` if a person has ``said`` so."""
    if said in ("failure", "discard"):
        return said
    return "failure" if BLOCKED in reason else "cut"


def await_reset(env: RobotEnv, patience: float) -> None:
    """Wait until somebody has reset the stop; at once when there is none.

    Args:
        env: the robot.
        patience: seconds; 0 = do not wait.

    Raises:
        RobotFault: nobody has in that time, or the safety node has fallen silent.
    """
    from real.robot_env import GUARD, RobotFault

    reason = latched(env)
    if not reason:
        env.stopped = ""
        return
    if reason == NOT_STARTED and env.stopped:
        reason = f"{env.stopped} (its safety node was started anew since)"
    else:
        env.stopped = reason
    how = f"when it is safe, call 'vla-rl robot reset' or the service {RESET}"
    began, said = time.monotonic(), -REMINDER
    while latched(env):
        waited = time.monotonic() - began
        if waited >= patience:
            late = f" Nobody has in {patience:g} s." if patience else ""
            raise RobotFault(f"the arm is stopped: {reason}. {how.capitalize()}.{late}")
        if env._unguarded() > GUARD:
            env._guarded()  # says so
        if waited - said >= REMINDER:
            said = waited
            print(
                f"the arm is stopped: {reason}. Waiting: {how} ({patience - waited:.0f} s left)", flush=True
            )
        time.sleep(0.05)
    env.stopped = ""
    print("reset: going on", flush=True)


def reset(overrides: list[str]) -> int:
    """``vla-rl robot reset``: end a latched stop, once, because a person says that it is safe. Exit code 1: refused."""
    from diagnostic_msgs.msg import DiagnosticStatus

    from real.ros2 import Link
    from real.safety_node import STATE
    from vla_rl.errors import UserError

    if overrides:
        raise UserError(f"vla-rl robot reset takes no arguments, not {' '.join(overrides)}")
    link = Link("vla_rl_reset")
    try:
        state = link.listen(STATE, DiagnosticStatus)
        if not state.wait(0, 5.0):
            raise UserError("no safety node is heard: is it running, under this ROS_DOMAIN_ID?")
        mode, reason = describe(state)
        if mode != "stopped":
            print(f"nothing to reset: the safety node is in mode {mode}")
            return 0
        link.pull(RESET, 10.0)
        print(f"reset; it was stopped: {reason}")
    finally:
        link.close()
    return 0


run = reset
"""What ``vla_rl.commands.robot`` calls."""
