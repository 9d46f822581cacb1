"""A Panda at a table in MuJoCo behind a position controller, as an industrial arm presents itself."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Reference = Callable[[float], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Seconds from now -> joint positions, velocities and accelerations [7] to follow."""

BANDWIDTH = 40.0
"""rad/s: natural frequency of the joint controller, critically damped."""

SETTLE = 0.3
"""Seconds for the cube, which the scene lets fall from a centimetre, to come to rest."""

LIFTED = 0.04
"""metres above where it lay at which the cube counts as lifted (robosuite's rule)."""


class ArmWorld:
    """robosuite's Lift scene (Panda, table, red cube) under computed-torque joint control.

    Times are simulated seconds. Joint order is the Panda's own.

    Args:
        home: [7] joint positions to begin from, rad.
        cameras: ``agentview``, ``frontview``, ``robot0_eye_in_hand`` ...
        image_size: height and width in pixels.
        speed: [7] rad/s that the drives do not exceed of their own accord, catching up after a contact; None = any.
    """

    def __init__(
        self,
        home: Sequence[float],
        cameras: Sequence[str] = ("agentview",),
        image_size: int = 96,
        speed: Sequence[float] | None = None,
    ) -> None:
        self.speed = np.full(7, np.inf) if speed is None else np.array(speed)
        importlib.import_module("sim.rendering").setup_mujoco()
        logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
        import mujoco
        import robosuite

        from sim.mujoco_camera import LeanCameras
        from sim.seeding import global_seed

        logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
        self._mujoco, self._seeded = mujoco, global_seed
        with global_seed(0):  # the cube's size, the same in every process
            self.env: Any = robosuite.make(
                "Lift",
                robots="Panda",
                has_renderer=False,
                has_offscreen_renderer=False,
                use_camera_obs=False,
                hard_reset=False,
            )
        self.model, self.data = self.env.sim.model._model, self.env.sim.data._data
        self.timestep = float(self.model.opt.timestep)
        joints = [self.model.joint(f"robot0_joint{i}") for i in range(1, 8)]
        self.qpos = np.array([j.qposadr[0] for j in joints])
        self.qvel = np.array([j.dofadr[0] for j in joints])
        self.fingers = np.array([self.model.joint(f"gripper0_finger_joint{i}").qposadr[0] for i in (1, 2)])
        self.cube = int(self.model.joint("cube_joint0").qposadr[0])
        self.home = np.array(home, np.float64)
        self.base = self.model.body("robot0_base").pos.copy()
        self.cameras = LeanCameras(self.model, cameras, image_size, hidden_groups=(0,))
        self.mass = np.zeros((self.model.nv, self.model.nv))
        self.torque = self.model.actuator_ctrlrange[:7, 1]

    def reset(self, seed: int | None) -> None:
        """Arm at home with open fingers, cube where ``seed`` puts it."""
        with self._seeded(int(np.random.randint(2**31)) if seed is None else int(seed)):
            self.env.reset()
        data = self.data
        data.qpos[self.qpos], data.qvel[:] = self.home, 0.0
        data.qpos[self.fingers] = 0.04, -0.04
        self.finger_target = 0.04
        data.time = 0.0
        still = np.zeros(7)
        self.advance(SETTLE, lambda _: (self.home, still, still))
        self.lying = float(self.cube_position[2])

    def advance(self, seconds: float, reference: Reference) -> None:
        """Step physics for ``seconds``, following ``reference`` (time 0 = now)."""
        mujoco, model, data = self._mujoco, self.model, self.data
        data.ctrl[7:9] = self.finger_target, -self.finger_target
        for k in range(round(seconds / self.timestep)):
            position, velocity, acceleration = reference((k + 1) * self.timestep)
            mujoco.mj_step1(model, data)
            mujoco.mj_fullM(model, self.mass, data.qM)
            # A position loop around a velocity loop, as drives have it: where nothing saturates, critically damped.
            error = position - data.qpos[self.qpos]
            speed = velocity + BANDWIDTH / 2 * error + acceleration / (2 * BANDWIDTH)
            wanted = 2 * BANDWIDTH * (np.clip(speed, -self.speed, self.speed) - data.qvel[self.qvel])
            inertia = self.mass[np.ix_(self.qvel, self.qvel)]
            torque = inertia @ wanted + data.qfrc_bias[self.qvel]
            data.ctrl[:7] = np.clip(torque, -self.torque, self.torque)
            mujoco.mj_step2(model, data)
        mujoco.mj_forward(model, data)

    def save(self) -> dict[str, np.ndarray]:
        """Everything that physics goes on from."""
        mujoco, kind = self._mujoco, self._mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.empty(mujoco.mj_stateSize(self.model, kind))
        mujoco.mj_getState(self.model, self.data, physics, kind)
        return {"physics": physics, "scene": np.array([self.finger_target, self.lying])}

    def load(self, state: dict[str, np.ndarray]) -> None:
        """Go on from what ``save`` gave."""
        mujoco, kind = self._mujoco, self._mujoco.mjtState.mjSTATE_INTEGRATION
        self.finger_target, self.lying = (float(value) for value in state["scene"])
        physics = np.array(state["physics"], np.float64)
        mujoco.mj_setState(self.model, self.data, physics, kind)
        mujoco.mj_forward(self.model, self.data)
        mujoco.mj_setState(self.model, self.data, physics, kind)  # forward may have moved the warm start

    @property
    def joints(self) -> np.ndarray:
        """[7] rad."""
        return self.data.qpos[self.qpos].copy()

    @property
    def joint_velocity(self) -> np.ndarray:
        """[7] rad/s."""
        return self.data.qvel[self.qvel].copy()

    @property
    def finger(self) -> float:
        """Position of the first finger, metres; 0 = shut, 0.04 = open."""
        return float(self.data.qpos[self.fingers[0]])

    @property
    def cube_position(self) -> np.ndarray:
        """[3] metres, the robot's base frame."""
        return self.data.qpos[self.cube : self.cube + 3] - self.base

    @property
    def success(self) -> bool:
        """Whether the cube is lifted now."""
        return bool(self.cube_position[2] > self.lying + LIFTED)

    def look(self) -> dict[str, np.ndarray]:
        """Camera name -> uint8 [3, H, W]."""
        return self.cameras.look(self.data)

    def close(self) -> None:
        """Free the renderer and the scene."""
        self.cameras.close()
        self.env.close()
