"""Meta-World's fifty table-top tasks (MT50, 3.1.1), each with a sentence and sparse reward."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from sim.base import Ending
from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE, image_key

INSTRUCTIONS = {
    "assembly-v3": "pick up the wrench and put its ring over the peg",
    "basketball-v3": "drop the basketball into the hoop",
    "bin-picking-v3": "move the block from the red bin to the blue bin",
    "box-close-v3": "put the lid on the box",
    "button-press-topdown-v3": "press the button from above",
    "button-press-topdown-wall-v3": "reach over the wall and press the button from above",
    "button-press-v3": "press the button from the front",
    "button-press-wall-v3": "go around the wall and press the button",
    "coffee-button-v3": "press the button of the coffee machine",
    "coffee-pull-v3": "pull the mug away from the coffee machine",
    "coffee-push-v3": "push the mug under the coffee machine",
    "dial-turn-v3": "turn the dial",
    "disassemble-v3": "take the wrench off the peg",
    "door-close-v3": "close the door",
    "door-lock-v3": "lock the door",
    "door-open-v3": "open the door",
    "door-unlock-v3": "unlock the door",
    "drawer-close-v3": "close the drawer",
    "drawer-open-v3": "open the drawer",
    "faucet-close-v3": "turn the faucet off",
    "faucet-open-v3": "turn the faucet on",
    "hammer-v3": "hammer the nail into the board",
    "hand-insert-v3": "put the block into the hole with the gripper",
    "handle-press-side-v3": "press the handle down from the side",
    "handle-press-v3": "press the handle down",
    "handle-pull-side-v3": "pull the handle up from the side",
    "handle-pull-v3": "pull the handle up",
    "lever-pull-v3": "pull the lever up",
    "peg-insert-side-v3": "insert the peg into the hole from the side",
    "peg-unplug-side-v3": "pull the peg out of the hole",
    "pick-out-of-hole-v3": "pick the puck out of the hole and take it to the goal",
    "pick-place-v3": "pick up the puck and hold it at the goal",
    "pick-place-wall-v3": "pick up the puck and carry it over the wall to the goal",
    "plate-slide-back-side-v3": "slide the plate out of the cabinet to the side",
    "plate-slide-back-v3": "slide the plate out of the cabinet",
    "plate-slide-side-v3": "slide the plate into the cabinet from the side",
    "plate-slide-v3": "slide the plate into the cabinet",
    "push-back-v3": "pull the puck back to the goal",
    "push-v3": "push the puck to the goal",
    "push-wall-v3": "push the puck around the wall to the goal",
    "reach-v3": "move the gripper to the goal",
    "reach-wall-v3": "move the gripper over the wall to the goal",
    "shelf-place-v3": "put the block on the shelf",
    "soccer-v3": "push the ball into the soccer goal",
    "stick-pull-v3": "pull the thermos with the stick",
    "stick-push-v3": "push the thermos with the stick",
    "sweep-into-v3": "sweep the block into the hole",
    "sweep-v3": "sweep the block off the table",
    "window-close-v3": "slide the window shut",
    "window-open-v3": "slide the window open",
}
"""What a person would say; no two are alike, so that a sentence tells which task is meant."""

UPSIDE_DOWN = ("corner", "corner2", "corner3", "corner4")
"""Cameras that Meta-World's scene mounts on their heads."""

CORNER2 = (0.75, 0.075, 0.7)
"""``corner2`` stands nearer than Meta-World puts it, in metres: where LeRobot's Meta-World data sets have it."""


class MetaWorldEnv:
    """One Meta-World task (see ``sim.base.SimEnv``); goal and object positions are a function of the seed.

    ``observation.state`` [4]: hand position (m) and gripper opening (0 shut, 1 open).
    ``observation.environment_state`` [39]: Meta-World's own observation with the goal visible.
    Action [4]: hand displacement (1 = 1 cm) and gripper effort (1 shuts), all in -1 ... 1; clipped.

    Args:
        id: ``reach-v3`` ... (MT50).
        image_size: height and width of every camera in pixels.
        cameras: ``corner2``, ``corner``, ``corner3``, ``corner4``, ``topview``, ``behindGripper``, ``gripperPOV``.
        max_episode_steps: time limit; the scripted experts need 30 to 130 steps on nearly every task.
        zoom: how much narrower than the simulator's own the cameras' field of view is.
        camera_shift: metres along x, y, z of the world that the cameras have been moved by, their direction kept; one on the
            hand is moved in its frame.
        after_success: control steps after success before the episode ends (``sim.base.Ending``); None = to the time limit.

    Raises:
        UserError: unknown id (nearest named) or camera.
    """

    def __init__(
        self,
        id: str = "reach-v3",
        *,
        image_size: int = 96,
        cameras: tuple[str, ...] | list[str] = ("corner2",),
        max_episode_steps: int | None = 200,
        zoom: float = 1.0,
        camera_shift: Sequence[float] = (0.0, 0.0, 0.0),
        after_success: int | None = 0,
    ) -> None:
        if id not in INSTRUCTIONS:
            near = (
                ", ".join(difflib.get_close_matches(id, INSTRUCTIONS, 3, 0.4)) or "one of MT50, e.g. reach-v3"
            )
            raise UserError(f"unknown Meta-World environment {id}: did you mean {near}?")
        limit = 200 if max_episode_steps is None else max_episode_steps
        if limit < 1:
            raise UserError(f"env.max_episode_steps={limit}: needs at least 1")
        importlib.import_module("sim.rendering").setup_mujoco()
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        from sim.mujoco_camera import LeanCameras

        env: Any = ALL_V3_ENVIRONMENTS[id]()
        # Meta-World hides the goal and fixes the episode unless told otherwise.
        env._partially_observable = False
        env._freeze_rand_vec, env.seeded_rand_vec, env._set_task_called = False, True, True
        env.__dict__.pop("sawyer_observation_space", None)  # cached with the goal hidden
        env.max_path_length = limit + 1
        self.env, self.instruction = env, INSTRUCTIONS[id]
        self.low, self.high = env.sawyer_observation_space.low, env.sawyer_observation_space.high
        self.layout = {
            name: getattr(env.model, name).copy() for name in ("body_pos", "body_quat", "site_pos")
        }
        env.model.camera("corner2").pos[:] = CORNER2
        self.cameras = LeanCameras(env.model, cameras, image_size, zoom=zoom, shift=camera_shift)
        self.ending = Ending(limit, after_success)
        self.spec = EnvSpec(
            id=id,
            state_dim=4,
            env_state_dim=39,
            action_low=(-1.0,) * 4,
            action_high=(1.0,) * 4,
            cameras={image_key(name): (image_size, image_size) for name in cameras},
            tasks=(self.instruction,),
            max_episode_steps=limit,
            rate_hz=1.0 / env.dt,
            state_names=("hand_x", "hand_y", "hand_z", "gripper"),
            action_names=("dx", "dy", "dz", "gripper"),
        )

    def reset(self, seed: int | None) -> tuple[dict[str, np.ndarray], str]:
        """Begin the episode of ``seed`` (None: a random one)."""
        import mujoco

        # Tasks move bodies of the model, and begin to reset from wherever the last episode ended.
        for name, values in self.layout.items():
            getattr(self.env.model, name)[:] = values
        mujoco.mj_resetData(self.env.model, self.env.data)
        self.env.seed(int(np.random.randint(2**31)) if seed is None else int(seed))
        observation, _ = self.env.reset()
        self.ending.begin()
        return self._vectors(np.clip(observation, self.low, self.high)), self.instruction

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, bool]:
        """One control step of 12.5 ms."""
        action = np.clip(action, -1.0, 1.0).astype(np.float32)
        observation, _, _, _, info = self.env.step(action)
        success = bool(info["success"])
        return (self._vectors(observation), *self.ending.step(success))

    def look(self) -> dict[str, np.ndarray]:
        """Render the cameras now."""
        pictures = self.cameras.look(self.env.data)
        return {
            image_key(name): np.ascontiguousarray(p[:, ::-1, ::-1]) if name in UPSIDE_DOWN else p
            for name, p in pictures.items()
        }

    def close(self) -> None:
        """Free the renderer and the scene."""
        self.cameras.close()
        self.env.close()

    def _vectors(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        values = observation.astype(np.float32)
        return {STATE: values[:4].copy(), ENV_STATE: values}
