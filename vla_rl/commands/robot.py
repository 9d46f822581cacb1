"""vla-rl robot: a policy on a robot over ROS 2, behind the safety node.

usage: vla-rl robot run env.robot=NAME policy=... [episodes=N] [launch=auto|false] [out=DIR]
       vla-rl robot session env.robot=NAME policy=... out=DIR [episodes=N] [log=true|false]
       vla-rl robot replay session=DIR env.robot=NAME policy=... [episodes=[0,3]] [out=DIR]
       vla-rl robot console env.robot=NAME [host=127.0.0.1] [port=8090]
       vla-rl robot reset

  run                               counts successes; writes report.json
  session                           records: a LeRobotDataset and an MCAP log that neither a crash nor a power cut
                                    loses; the same command again goes on
  replay                            what a policy would have done in a recorded session, step by step, without the robot
  reset                             ends a latched stop, once the scene is safe
  console                           watches a robot that another process drives, in a browser, with a STOP button

  env.robot=sim_arm                 contract: a name of configs/robot/ or a YAML file
  policy.path=runs/NAME             the policy a run has learned; or a LeRobot policy folder; or policy=expert
  launch=auto                       starts the nodes that are missing: the safety node, and the simulated arm
  episodes=10 seed=100000           how many, and the scene of the first
  teleop=joy teleop.deadman=4       a gamepad or SpaceMouse may take over (configs/teleop/)
  teleop=console                    the same browser page, with a handle to drive (docs/console.md)
  env.cameras=[]                    cameras the policy uses; a stale one holds the arm

A latched stop is cleared by nothing but a person: vla-rl robot reset, the console's button or the service
/vla_rl/safety/reset. run, session, train and eval wait env.stop_patience seconds for that; the episode has failed (cut, if
it was a person who pressed the button). Then, or at once with env.stop_patience=0, they end and name the reason.

Examples:
  vla-rl robot run env.robot=sim_arm policy=expert episodes=5
  vla-rl robot run env.robot=sim_arm policy.path=runs/arm episodes=50 env.cameras=[]
  vla-rl robot session env.robot=sim_arm policy=expert teleop=joy out=sessions/first
  vla-rl robot replay session=sessions/first policy=expert
"""

from __future__ import annotations

import importlib

from vla_rl.config import nearest
from vla_rl.errors import UserError

ACTIONS = {
    "run": "real.commands",
    "session": "real.session",
    "replay": "real.replay",
    "console": "real.console",
    "reset": "real.stops",
}


def run(overrides: list[str]) -> int:
    """Hand over to ``real`` (which this package may not import)."""
    action, rest = (overrides[0], overrides[1:]) if overrides else ("", [])
    if action not in ACTIONS:
        raise UserError(f"vla-rl robot '{action}': {nearest(action, ACTIONS)}; see vla-rl robot --help")
    return importlib.import_module(ACTIONS[action]).run(rest)
