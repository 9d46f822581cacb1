"""The keyboard of the terminal the command runs in: for a look around, not for a task that needs both hands."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import termios
import threading
import time
import tty

import torch
from tensordict import TensorDict
from torch import Tensor

from real.robot_env import RobotEnv
from real.teleop.buttons import checked_rewind
from real.teleop.joy import gripper_now
from vla_rl.errors import UserError
from vla_rl.keys import STATE
from vla_rl.policies.base import Observation

KEYS = {
    "w": (0, 1.0), "s": (0, -1.0), "a": (1, 1.0), "d": (1, -1.0), "r": (2, 1.0), "f": (2, -1.0),
    "i": (3, 1.0), "k": (3, -1.0), "j": (4, 1.0), "l": (4, -1.0), "u": (5, 1.0), "o": (5, -1.0),
}  # fmt: skip
"""Key -> (number of the action, direction)."""

OUTCOMES = {
    "\r": "success",
    "\n": "success",
    "\x7f": "failure",
    "\b": "failure",
    "x": "discard",
    "z": "rewind",
}
OPEN, SHUT, STAY, STOP = "e", "q", "g", " "

HELP = (
    "keys: w s a d r f move (i k j l u o turn), e q gripper, g stay engaged without moving, "
    "space STOP (until reset), Enter success, Backspace failure, x discard, z rewind"
)


class Keyboard:
    """A teleoperator (see ``vla_rl.policies.intervened.Teleoperator``) for one robot.

    A terminal tells that a key is down only by repeating it: one is engaged, and the arm moves, until ``hold`` seconds after
    the last key. That is the dead-man button: hands off, and the policy goes on.

    Args:
        env: the robot; of its actions the first six at most are reached.
        speed: action of a key, 0 ... 1.
        hold: seconds; longer than the keyboard's delay before it repeats.
        moving: seconds after a key for which the arm moves.
        terminal: file descriptor; None = that of standard input.
        rewind_seconds: how far z takes the arm back along its path.

    Raises:
        UserError: standard input is not a terminal.
    """

    state_keys = (STATE,)

    def __init__(
        self,
        env: RobotEnv,
        speed: float = 0.4,
        hold: float = 0.8,
        moving: float = 0.15,
        terminal: int | None = None,
        rewind_seconds: float = 2.0,
    ) -> None:
        if not 0 < speed <= 1:
            raise UserError(f"teleop.speed={speed} must lie in (0, 1]")
        self.terminal = sys.stdin.fileno() if terminal is None else terminal
        if not os.isatty(self.terminal):
            raise UserError("teleop=keyboard needs a terminal: standard input is none")
        self.env, self.speed, self.hold, self.moving = env, speed, hold, moving
        self.moves = env.env_spec.action_dim - (env.contract.gripper is not None)
        env.rewind_seconds = checked_rewind(rewind_seconds)
        self._heard, self._outcome, self._key = float("-inf"), "", ""
        self.grip, self._was = 1.0, False
        env.outcome = self.outcome
        self._before = termios.tcgetattr(self.terminal)
        tty.setcbreak(self.terminal)
        self._thread = threading.Thread(target=self._read, name="keyboard", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # whatever ends the command, the terminal is as before
        print(HELP, flush=True)

    def _read(self) -> None:
        while not self.env.closed:
            try:
                key = os.read(self.terminal, 1).decode(errors="ignore")
            except OSError:
                return
            if key == STOP:
                self.env.stop()
            elif key in OUTCOMES:
                self._outcome = OUTCOMES[key]
            elif key in KEYS or key in (OPEN, SHUT, STAY):
                if key in (OPEN, SHUT):
                    self.grip = 1.0 if key == OPEN else -1.0
                self._key, self._heard = key, time.monotonic()

    def outcome(self) -> str:
        """What a key has said since the last call (one of ``OUTCOMES``), else an empty string."""
        outcome, self._outcome = self._outcome, ""
        return outcome

    def initial_state(self, batch_size: int) -> TensorDict:
        """The device has no state of its own."""
        if batch_size != 1:
            raise UserError(f"a keyboard steers one robot, not {batch_size}")
        return TensorDict({}, batch_size=[1])

    def command(self, observation: Observation, state: TensorDict) -> tuple[Tensor, Tensor, TensorDict]:
        """See ``Teleoperator``."""
        since, key = time.monotonic() - self._heard, self._key
        engaged = since < self.hold
        if engaged and not self._was and key not in (OPEN, SHUT):
            self.grip = gripper_now(self.env, observation)
        self._was = engaged
        action = torch.zeros(1, self.env.env_spec.action_dim)
        if key in KEYS and since < self.moving and KEYS[key][0] < self.moves:
            index, sign = KEYS[key]
            action[0, index] = sign * self.speed
        if self.env.contract.gripper is not None:
            action[0, -1] = self.grip
        return action, torch.tensor([engaged]), state

    def close(self) -> None:
        """Give the terminal back as it was."""
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self.terminal, termios.TCSADRAIN, self._before)
