"""A policy on a robot, with a lifecycle; who may take over is part of it.

configure: policy and robot are there and fit each other. activate: one episode after the other. deactivate: the arm
holds. A fault of the robot or of the policy deactivates it.
"""

from __future__ import annotations

import threading
from typing import Any

from real.lifecycle import Shell, Work, spin

PARAMETERS = {
    # name: (default, what it is)
    "overrides": (
        ["env.robot=sim_arm", "policy=expert"],
        "settings as of vla-rl robot run: env.robot=..., policy.path=..., teleop=...",
    ),
}


class Episodes(Work):
    """Episodes of ``vla-rl robot run``, without an end."""

    def __init__(self, overrides: list[str]) -> None:
        from real.commands import policy_of
        from vla_rl.config import build, compose

        config = compose("robot_run", ["env.stop_patience=0", *overrides])
        self.env: Any = build(config.env)
        try:
            self.policy = policy_of(config, self.env)
        except BaseException:
            self.env.close()
            raise
        self.seed, self.played, self.stopping = int(config.seed), 0, threading.Event()
        self.successes = 0

    def run(self) -> None:
        """Play until ``stop``; seeds go on where they stopped."""
        from vla_rl.rollout.collector import Collector

        self.stopping.clear()
        first = self.played
        collector = Collector(self.env, self.policy, lambda number, _: self.seed + first + number)
        try:
            collector.begin()
            while not self.stopping.is_set():
                for episode in collector.step(deterministic=True):
                    self.played += 1
                    self.successes += episode.success
                    self.say(f"{self.successes} of {self.played} episodes succeeded")
        finally:
            self.env.hold()

    def stop(self) -> None:
        """End ``run`` within a control step (or when the arm has come home)."""
        self.stopping.set()

    def close(self) -> None:
        """Leave the network; the arm holds."""
        self.env.close()


def main() -> None:
    """Run until interrupted."""
    spin(lambda: Shell("vla_rl_policy", PARAMETERS, lambda get: Episodes(get("overrides"))))


if __name__ == "__main__":
    main()
