"""The simulated arm in lockstep: what a policy trains in before it drives the same arm over ROS 2.

The control stack is the robot's own (contract, inverse kinematics, safety filter, command rate), with the two delays
that ROS 2 brings: commands are carried out ``AHEAD`` ticks after they are made, and the newest joint states are a tick
old. What is missing is everything irregular.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from real.contract import load_contract
from real.embodiment import Commander, action_names, state_names, state_vector
from real.kinematics import ArmModel
from real.safety import AHEAD, SafetyFilter
from sim.arm_state import capture, put_back
from sim.arm_world import ArmWorld
from sim.base import Ending
from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE, image_key


class SimArmEnv:
    """Lift the red cube with the simulated arm (see ``sim.base.SimEnv``).

    ``observation.state``: joints, TCP position, finger. ``observation.environment_state`` [3]: the cube's position,
    metres in the base frame, as a tracker would report it. Action: see ``real.embodiment.Commander``.

    Args:
        id: ``ArmLift``.
        robot: contract of the arm (``configs/robot``).
        image_size: height and width of the pictures in pixels.
        cameras: names from the contract; None = all of them.
        max_episode_steps: time limit in control steps.
        after_success: control steps after success before the episode ends (``sim.base.Ending``); None = to the time limit.
    """

    def __init__(
        self,
        id: str = "ArmLift",
        *,
        robot: str = "sim_arm",
        image_size: int = 96,
        cameras: tuple[str, ...] | list[str] | None = None,
        max_episode_steps: int = 150,
        after_success: int | None = 0,
    ) -> None:
        if id != "ArmLift":
            raise UserError(f"unknown task of the simulated arm {id}: there is ArmLift")
        self.contract = load_contract(robot)
        names = tuple(self.contract.cameras) if cameras is None else tuple(cameras)
        self.model = ArmModel(self.contract)
        self.safety = SafetyFilter(self.contract, self.model, AHEAD / self.contract.command.rate_hz)
        self.commander = Commander(self.contract, self.model)
        self.world = ArmWorld(self.contract.home, names, image_size, self.contract.limits.velocity)
        self.ticks = round(self.contract.command.rate_hz / self.contract.control.rate_hz)
        self.instruction = self.contract.tasks[0]
        actions = action_names(self.contract)
        self.spec = EnvSpec(
            id=id,
            state_dim=len(state_names(self.contract)),
            env_state_dim=3,
            action_low=(-1.0,) * len(actions),
            action_high=(1.0,) * len(actions),
            cameras={image_key(name): (image_size, image_size) for name in names},
            tasks=(self.instruction,),
            max_episode_steps=max_episode_steps,
            rate_hz=self.contract.control.rate_hz,
            state_names=state_names(self.contract),
            action_names=actions,
        )
        self.ending = Ending(max_episode_steps, after_success)

    def reset(self, seed: int | None) -> tuple[dict[str, np.ndarray], str]:
        """Begin the episode of ``seed`` (None: a random one)."""
        self.world.reset(seed)
        self.safety.reset(self.world.joints)
        self.commander.reset(self.world.joints)
        self.ending.begin()
        self.now = 0.0
        self.seen = self._seen()
        start = self.safety.position, self.safety.velocity, self.safety.acceleration
        self.commands = deque([start] * (AHEAD + 1), maxlen=AHEAD + 1)
        return self._observe(), self.instruction

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, bool]:
        """One control step: several ticks of the safety filter."""
        world, dt = self.world, self.safety.dt
        target, finger = self.commander.command(action, self.seen[0])
        self.safety.aim(target, self.now)
        if finger is not None:
            world.finger_target = finger
        for _ in range(self.ticks):
            self.seen = self._seen()
            self.now += dt
            self.safety.tick(self.now, self.seen[0], dt)
            before = self.commands[0]
            self.commands.append((self.safety.position, self.safety.velocity, self.safety.acceleration))
            world.advance(dt, between(before, self.commands[0][2], dt))
        success = world.success
        return (self._observe(), *self.ending.step(success))

    def save_state(self) -> dict[str, np.ndarray]:
        """This moment, physics and control stack alike; see ``restore``."""
        return capture(self)

    def restore(self, state: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
        """Begin an episode at a saved moment; the same actions then do, bit for bit, what they would have done."""
        put_back(self, state)
        self.ending.begin()
        return self._observe(), self.instruction

    def look(self) -> dict[str, np.ndarray]:
        """Render the cameras now."""
        return {image_key(name): picture for name, picture in self.world.look().items()}

    def close(self) -> None:
        """Free the scene."""
        self.world.close()

    def _seen(self) -> tuple[np.ndarray, float, np.ndarray]:
        """Joints, finger and cube now."""
        return self.world.joints, self.world.finger, self.world.cube_position

    def _observe(self) -> dict[str, np.ndarray]:
        joints, finger, cube = self.seen
        return {STATE: state_vector(self.model, joints, finger), ENV_STATE: cube.astype(np.float32)}


def between(start: tuple[np.ndarray, np.ndarray, np.ndarray], end: np.ndarray, seconds: float):
    """The motion of constant jerk from ``start`` (position, velocity, acceleration) to the acceleration ``end``."""
    position, velocity, acceleration = start
    jerk = (end - acceleration) / seconds

    def reference(time: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        speed = velocity + acceleration * time + jerk * time**2 / 2
        where = position + velocity * time + acceleration * time**2 / 2 + jerk * time**3 / 6
        return where, speed, acceleration + jerk * time

    return reference
