"""robosuite 1.4.1 tasks with a Panda under robomimic's operational-space control, and lazy lean cameras.

``RobosuiteEnv.step`` runs robosuite's control law and MuJoCo's own physics steps, without the observables that
stock robosuite refreshes at each of the 25 physics steps and without evaluating all of the dynamics three times in each
(``sim.robosuite_control``).
"""

from __future__ import annotations

import difflib
import importlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from sim.base import Ending
from sim.seeding import global_seed
from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE, image_key

TASKS = {
    # name: (robosuite's name, what a person would say, time limit in control steps at 20 Hz)
    "Lift": ("Lift", "lift the red cube", 150),
    "Can": ("PickPlaceCan", "put the can into its bin", 300),
    "Milk": ("PickPlaceMilk", "put the milk carton into its bin", 300),
    "Bread": ("PickPlaceBread", "put the bread into its bin", 300),
    "Cereal": ("PickPlaceCereal", "put the cereal box into its bin", 300),
    "Square": ("NutAssemblySquare", "put the square nut on the square peg", 300),
    "Round": ("NutAssemblyRound", "put the round nut on the round peg", 300),
    "Stack": ("Stack", "stack the red cube on the green cube", 250),
    "Door": ("Door", "open the door", 300),
}


OWN = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
"""robosuite's observables that make up ``observation.state``."""


class RobosuiteEnv:
    """One robosuite task (see ``sim.base.SimEnv``).

    ``observation.state`` [9]: end-effector position (m), its quaternion (xyzw), finger joints (m).
    ``observation.environment_state``: robosuite's ``object-state``. Action [7]: translation (1 = 5 cm) and rotation
    vector (1 = 0.5 rad) of the end effector, gripper (1 shuts), all in -1 ... 1; clipped. Placement and the arm's
    initial pose are a function of the seed; sizes of objects are fixed (stock Lift redraws its cube's by 2 mm).

    Args:
        id: a name of ``TASKS``; robosuite's own names (``PickPlaceCan``) too.
        image_size: height and width of every camera in pixels.
        cameras: ``agentview``, ``frontview``, ``birdview``, ``sideview``, ``robot0_eye_in_hand``.
        control_freq: control steps per second.
        max_episode_steps: time limit; None = the task's own.
        zoom: how much narrower than the simulator's own the cameras' field of view is.
        camera_shift: metres along x, y, z of the world that the cameras have been moved by, their direction kept; one on the
            hand is moved in its frame.
        after_success: control steps after success before the episode ends (``sim.base.Ending``); None = to the time limit.

    Raises:
        UserError: unknown id (nearest named) or camera.
    """

    def __init__(
        self,
        id: str = "Lift",
        *,
        image_size: int = 96,
        cameras: tuple[str, ...] | list[str] = ("agentview",),
        control_freq: int = 20,
        max_episode_steps: int | None = None,
        zoom: float = 1.0,
        camera_shift: Sequence[float] = (0.0, 0.0, 0.0),
        after_success: int | None = 0,
    ) -> None:
        name = {stock: short for short, (stock, *_) in TASKS.items()}.get(id, id)
        if name not in TASKS:
            near = ", ".join(difflib.get_close_matches(id, TASKS, 3, 0.4)) or "one of " + ", ".join(TASKS)
            raise UserError(f"unknown robosuite environment {id}: did you mean {near}?")
        stock, self.instruction, limit = TASKS[name]
        limit = max_episode_steps or limit
        if limit < 1 or control_freq < 1:
            raise UserError("env.max_episode_steps and env.control_freq need at least 1")
        importlib.import_module("sim.rendering").setup_mujoco()
        logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
        import robosuite

        from sim.mujoco_camera import LeanCameras
        from sim.robosuite_control import PandaControl

        logging.getLogger("robosuite_logs").setLevel(logging.ERROR)  # robosuite lowers it on import
        self._control = PandaControl
        with global_seed(0):  # the model's own random sizes, the same in every process
            self.env: Any = robosuite.make(
                stock,
                robots="Panda",
                controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
                has_renderer=False,
                has_offscreen_renderer=False,
                use_camera_obs=False,
                use_object_obs=True,
                reward_shaping=False,
                control_freq=control_freq,
                horizon=limit,
                ignore_done=True,
                hard_reset=False,
            )
        sim = self.env.sim
        self.model, self.data = sim.model._model, sim.data._data
        self.substeps = int(self.env.control_timestep / self.env.model_timestep)
        self.control = self._control(self.env)
        self.cameras = LeanCameras(
            self.model, cameras, image_size, hidden_groups=(0,), zoom=zoom, shift=camera_shift
        )
        self.ending = Ending(limit, after_success)
        self._find_sensors()
        self.spec = EnvSpec(
            id=name,
            state_dim=9,
            env_state_dim=len(self._observe()[ENV_STATE]),
            action_low=(-1.0,) * 7,
            action_high=(1.0,) * 7,
            cameras={image_key(camera): (image_size, image_size) for camera in cameras},
            tasks=(self.instruction,),
            max_episode_steps=limit,
            rate_hz=float(control_freq),
            state_names=(
                "eef_x",
                "eef_y",
                "eef_z",
                "eef_qx",
                "eef_qy",
                "eef_qz",
                "eef_qw",
                "finger1",
                "finger2",
            ),
            action_names=("dx", "dy", "dz", "rx", "ry", "rz", "gripper"),
        )

    def reset(self, seed: int | None) -> tuple[dict[str, np.ndarray], str]:
        """Begin the episode of ``seed`` (None: a random one)."""
        with global_seed(int(np.random.randint(2**31)) if seed is None else int(seed)):
            self.env.reset()
        self.control = self._control(self.env)
        self.ending.begin()
        return self._observe(), self.instruction

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, bool]:
        """One control step."""
        self.control.step(np.clip(np.asarray(action, np.float64), -1.0, 1.0), self.substeps)
        success = bool(self.env._check_success())
        return (self._observe(), *self.ending.step(success))

    def look(self) -> dict[str, np.ndarray]:
        """Render the cameras now."""
        return {image_key(name): picture for name, picture in self.cameras.look(self.data).items()}

    def close(self) -> None:
        """Free the renderer and the scene."""
        self.cameras.close()
        self.env.close()

    def _observe(self) -> dict[str, np.ndarray]:
        values: dict[str, np.ndarray] = {}  # sensors read those before them here
        for name, sensor in self._sensors:
            values[name] = np.array(sensor(values))
        state = np.concatenate([values[name] for name in OWN])
        objects = np.concatenate([np.atleast_1d(values[name]) for name in self._objects])
        return {STATE: state.astype(np.float32), ENV_STATE: objects.astype(np.float32)}

    def _find_sensors(self) -> None:
        """Those observables, of twice as many, that an observation needs."""
        observables = self.env._observables
        self._objects = [n for n, o in observables.items() if o.modality == "object" and o.is_active()]
        self._sensors = [(n, o._sensor) for n, o in observables.items() if n in OWN or n in self._objects]
