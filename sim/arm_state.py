"""A moment of the simulated arm as arrays: physics, safety filter, command queue, commander."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from real.safety import AHEAD, Brake

if TYPE_CHECKING:
    from sim.sim_arm import SimArmEnv

State = dict[str, np.ndarray]


def capture(env: SimArmEnv) -> State:
    """Everything that the next step depends on; ``put_back`` in any environment of the same contract."""
    safety, commander = env.safety, env.commander
    # Ruckig goes on along a trajectory of its own, which cannot be read: here and after putting back it plans anew.
    safety._towards.reset()
    joints, finger, cube = env.seen
    began = [np.array(part) for part in safety.brake.trajectory.at_time(0.0)]
    return env.world.save() | {
        "motion": np.stack([safety.position, safety.velocity, safety.acceleration]),
        "brake": np.stack(began),
        "past": np.stack(list(safety._past)),
        "target": safety.target.copy(),
        "latched": np.frombuffer(safety.latched.encode(), np.uint8).copy(),
        "times": np.array([env.now, safety.target_time, safety.brake.offset, float(safety.lost)]),
        "commands": np.stack([np.stack(command) for command in env.commands]),
        "commander": commander.target.copy(),
        "ik_joints": commander.ik.joints.copy(),
        "ik_position": commander.ik.position.copy(),
        "ik_rotation": commander.ik.rotation.copy(),
        "seen": np.concatenate([joints, [finger], cube]),
    }


def put_back(env: SimArmEnv, state: State) -> None:
    """Make ``env`` what it was when ``state`` was captured."""
    safety, commander = env.safety, env.commander
    env.world.load(state)
    env.now, safety.target_time, offset, lost = (float(value) for value in state["times"])
    safety.position, safety.velocity, safety.acceleration = (part.copy() for part in state["motion"])
    safety.brake = Brake(safety._brake_from(*state["brake"]), offset)
    safety._past.clear()
    safety._past.extend(part.copy() for part in state["past"])
    safety.target = state["target"].copy()
    safety.latched, safety.lost = state["latched"].tobytes().decode(), bool(lost)
    safety._towards.reset()
    commands = [(p.copy(), v.copy(), a.copy()) for p, v, a in state["commands"]]
    env.commands = deque(commands, maxlen=AHEAD + 1)
    commander.target = state["commander"].copy()
    commander.ik.joints = state["ik_joints"].copy()
    commander.ik.position, commander.ik.rotation = state["ik_position"].copy(), state["ik_rotation"].copy()
    joints, finger, cube = np.split(state["seen"], [-4, -3])
    env.seen = joints, float(finger[0]), cube
