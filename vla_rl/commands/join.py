"""vla-rl join: a robot (or a simulator) joins a training that runs on Ray, and leaves it again.

usage: vla-rl join training=NAME [address=auto] [env=robot] [key=value ...]

  training=first                     the run's name; it was begun with launcher=ray launcher.guests=N: places for N that come and go
  address=auto                       the Ray cluster: auto on a machine that is part of it (ray start --address=HOST:6379)
  env=robot env.robot=ur5e           where this one plays; observations and actions have to be those of the run
  steps=5000                         leave after so many steps; else when the run ends, or at Ctrl-C (SIGINT, SIGTERM)
  policy_path=FOLDER                 of the base policy, where it lies somewhere else here

Episodes in flight are closed when it leaves; what it has played stays in the run. If this machine vanishes, its place is free
after a minute.

Examples:
  vla-rl train experiment=table launcher=ray launcher.guests=2 run.name=first
  vla-rl join training=first env=table env.num_envs=1
"""

from __future__ import annotations

import signal

from vla_rl.config import compose


def run(overrides: list[str]) -> int:
    """Play until the run ends or a person interrupts."""
    config = compose("join", overrides)
    from vla_rl.runtime.distributed.guest import LEAVE, join

    # Both mean "leave", also where a shell has started this with SIGINT ignored, as it does with what runs in the background.
    for number in LEAVE:
        signal.signal(number, signal.default_int_handler)
    join(config)
    return 0
