"""Somebody beside the simulated arm who resets its latched stops, so that a measurement needs no person.

For the simulated arm alone: it cannot hurt anybody. On hardware a person looks first.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

from real.contract import RobotContract
from real.ros2 import Link
from real.safety_node import RESET, STATE, describe
from vla_rl.errors import UserError

PAUSE = 1.0
"""Seconds that the attendant takes."""


class Attendant:
    """Resets every stop but that of a safety node that nobody has started, while the block lasts.

    Args:
        contract: the simulated arm's.

    Raises:
        UserError: any other robot.
    """

    def __init__(self, contract: RobotContract) -> None:
        if contract.name != "sim_arm":
            raise UserError(f"{contract.name} is no simulation: only a person may reset its stops")
        self.resets: list[str] = []
        """Why the arm was stopped, each time."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Attendant:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        from diagnostic_msgs.msg import DiagnosticStatus

        link = Link("attendant")
        try:
            state = link.listen(STATE, DiagnosticStatus)
            while not self._over.wait(0.2):
                mode, reason = describe(state)
                if mode != "stopped" or reason == "not started":
                    continue
                time.sleep(PAUSE)
                try:
                    link.pull(RESET, 10.0)
                except UserError:  # refused while the arm still moves; asked again
                    continue
                self.resets.append(reason)
                state.wait(state.count + 1, 2.0)
        finally:
            link.close()
