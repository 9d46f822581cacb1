"""The safety node (``real.safety_node``) with a lifecycle.

configure: the contract is checked, the arm's joint states are there, nobody else commands it. activate: it commands
(after ``/vla_rl/safety/reset``). deactivate: the arm brakes along its last command and rests.
"""

from __future__ import annotations

from real.contract import load_contract
from real.lifecycle import Shell, Work, spin
from real.realtime import prefer_realtime
from real.ros2 import Link
from real.safety_node import SafetyLoop

PARAMETERS = {
    # name: (default, what it is)
    "robot": ("sim_arm", "contract: a name of configs/robot, or a YAML file"),
}


class Safety(Work):
    """One robot's safety loop."""

    def __init__(self, robot: str) -> None:
        contract = load_contract(robot)
        self.link = Link("vla_rl_safety")
        try:
            self.loop = SafetyLoop(contract, self.link)
        except BaseException:
            self.link.close()
            raise

    def run(self) -> None:
        """Command until ``stop``."""
        self.loop.stopping.clear()
        prefer_realtime()
        self.loop.run()

    def stop(self) -> None:
        """End ``run`` within a tick."""
        self.loop.stopping.set()

    def close(self) -> None:
        """Leave the network."""
        self.link.close()


def main() -> None:
    """Run until interrupted."""
    spin(lambda: Shell("vla_rl_safety_lifecycle", PARAMETERS, lambda get: Safety(get("robot"))))


if __name__ == "__main__":
    main()
