"""Any gymnasium environment by id, with Box observations and actions."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

import numpy as np

from sim.mujoco_camera import close_at_exit
from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.keys import STATE, image_key

CAMERA = "render"


class GymnasiumEnv:
    """One gymnasium environment (see ``sim.base.SimEnv``).

    ``observation.state`` is the environment's observation, flattened; there is no privileged state. Success is
    ``info[success_key]``, or with ``success_on_termination`` a termination with positive reward, or, with
    ``success_reward``, a step whose own reward reaches that value. The reward given out is sparse: 1 at success.
    The environment's own end of an episode without success terminates it.

    Args:
        id: registered id, e.g. ``Reacher-v5``; ``module:Name-v0`` imports the module first.
        success_key: entry of ``info``; None = ``is_success`` or ``success``, whichever is there.
        success_on_termination: count a termination with positive reward as success.
        success_reward: reward at which a step counts as success (Reacher-v5: -0.05 is near the target).
        task: the instruction; empty = made from the id.
        image_size: height and width of the picture in pixels; 0 = no camera.
        max_episode_steps: time limit; None = the registered one, or 1,000.
        env_kwargs: for ``gymnasium.make``.

    Raises:
        UserError: unknown id (nearest named), discrete actions, unbounded actions, observations that are no
            vector, an environment that cannot render.
    """

    def __init__(
        self,
        id: str,
        *,
        success_key: str | None = None,
        success_on_termination: bool = False,
        success_reward: float | None = None,
        task: str = "",
        image_size: int = 96,
        max_episode_steps: int | None = None,
        env_kwargs: dict[str, Any] | None = None,
    ) -> None:
        importlib.import_module("sim.rendering").setup_mujoco()
        import gymnasium as gym

        self.success_key, self.image_size = success_key, image_size
        self.success_on_termination, self.success_reward = success_on_termination, success_reward
        self.env = _make(gym, id, image_size > 0, dict(env_kwargs or {}))
        limit = max_episode_steps or (self.env.spec and self.env.spec.max_episode_steps) or 1000
        self.env = self.env.unwrapped  # without gymnasium's own time limit: ours counts
        self.low, self.high, state_dim = _dimensions(gym, id, self.env)
        self.instruction = task or f"solve {id.rpartition(':')[2].rsplit('-v', 1)[0]}"
        _lean(self.env, image_size)
        self.steps, self._looked = 0, False
        self.spec = EnvSpec(
            id=id,
            state_dim=state_dim,
            env_state_dim=0,
            action_low=tuple(self.low.tolist()),
            action_high=tuple(self.high.tolist()),
            cameras={image_key(CAMERA): (image_size, image_size)} if image_size > 0 else {},
            tasks=(self.instruction,),
            max_episode_steps=int(limit),
            rate_hz=float(self.env.metadata.get("render_fps") or 30),
        )

    def reset(self, seed: int | None) -> tuple[dict[str, np.ndarray], str]:
        """Begin the episode of ``seed`` (None: a random one)."""
        observation, _ = self.env.reset(seed=None if seed is None else int(seed))
        self.steps = 0
        return self._vector(observation), self.instruction

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, bool]:
        """One step; the action is clipped to the spec's bounds."""
        shape = self.env.action_space.shape
        clipped = np.clip(action, self.low, self.high).reshape(shape).astype(self.env.action_space.dtype)
        observation, reward, terminated, truncated, info = self.env.step(clipped)
        self.steps += 1
        success = self._success(float(reward), bool(terminated), info)
        ended = success or bool(terminated)
        over = (bool(truncated) or self.steps >= self.spec.max_episode_steps) and not ended
        return self._vector(observation), float(success), ended, over, success

    def look(self) -> dict[str, np.ndarray]:
        """Render now, resized to ``image_size``."""
        if not self.spec.cameras:
            return {}
        import cv2

        picture = np.asarray(self.env.render())
        if not self._looked:
            self._looked = True
            close_at_exit(self)
        size = self.image_size
        if picture.shape[:2] != (size, size):
            shrink = picture.shape[0] > size
            picture = cv2.resize(
                picture, (size, size), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
            )
        return {image_key(CAMERA): np.ascontiguousarray(picture[..., :3].transpose(2, 0, 1))}

    def close(self) -> None:
        """Free the environment."""
        self.env.close()

    def _success(self, reward: float, terminated: bool, info: dict[str, Any]) -> bool:
        if self.success_key is not None:
            if self.success_key not in info:
                have = ", ".join(sorted(info)) or "nothing"
                raise UserError(f"env.success_key={self.success_key}: info of {self.spec.id} has {have}")
            return bool(info[self.success_key])
        if bool(info.get("is_success", info.get("success", False))):
            return True
        if self.success_on_termination and terminated and reward > 0:
            return True
        return self.success_reward is not None and reward >= self.success_reward

    def _vector(self, observation: Any) -> dict[str, np.ndarray]:
        return {STATE: np.asarray(observation, np.float32).reshape(-1)}


def _make(gym: Any, id: str, render: bool, kwargs: dict[str, Any]) -> Any:
    """``gymnasium.make`` with its several errors told in one line."""
    mode = {"render_mode": "rgb_array"} if render else {}
    try:
        env = gym.make(id, disable_env_checker=True, **mode, **kwargs)
    except (gym.error.NameNotFound, gym.error.VersionNotFound, gym.error.NamespaceNotFound) as error:
        near = ", ".join(difflib.get_close_matches(id, gym.registry, 3, 0.4)) or "see gymnasium.registry"
        raise UserError(f"unknown gymnasium environment {id}: did you mean {near}?") from error
    except (gym.error.Error, ImportError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"gymnasium environment {id} cannot be made: {first}") from error
    except TypeError as error:
        if "render_mode" in str(error):
            raise UserError(f"{id} cannot render: set env.image_size=0 to run it without a camera") from error
        raise UserError(f"gymnasium environment {id} cannot be made: {error}; see env.env_kwargs") from error
    if render and "rgb_array" not in env.metadata.get("render_modes", []):
        env.close()
        raise UserError(f"{id} cannot render to pixels: set env.image_size=0 to run it without a camera")
    return env


def _lean(env: Any, size: int) -> None:
    """Small pictures without shadows and reflections from gymnasium's MuJoCo environments."""
    model, renderer = getattr(env, "model", None), getattr(env, "mujoco_renderer", None)
    if size > 0 and hasattr(model, "vis") and renderer is not None:
        model.vis.quality.offsamples = 0
        model.light_castshadow[:] = 0
        model.mat_reflectance[:] = 0
        renderer.width = renderer.height = size


def _dimensions(gym: Any, id: str, env: Any) -> tuple[np.ndarray, np.ndarray, int]:
    """Action bounds [A] and the length of the flattened observation."""
    action, observation = env.action_space, env.observation_space
    if not isinstance(action, gym.spaces.Box):
        raise UserError(
            f"{id} has {type(action).__name__} actions: only continuous (Box) actions are supported"
        )
    if not isinstance(observation, gym.spaces.Box):
        raise UserError(f"{id} has {type(observation).__name__} observations: wrap it to give a vector (Box)")
    low, high = action.low.reshape(-1).astype(np.float32), action.high.reshape(-1).astype(np.float32)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise UserError(f"{id} has unbounded actions: wrap it in gymnasium.wrappers.RescaleAction")
    return low, high, int(np.prod(observation.shape))
