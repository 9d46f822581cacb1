"""robosuite as it comes: its own ``step``, and its camera at every step or none.

The yardstick of ``vla-rl bench simulators`` (each environment in a process of gymnasium's ``AsyncVectorEnv``) and of
``vla-rl bench collector``; not meant for training.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from sim.base import Ending
from sim.robosuite import OWN, TASKS
from sim.seeding import global_seed
from vla_rl.bench.peers.serve import serve
from vla_rl.environment import EnvSpec
from vla_rl.keys import ENV_STATE, STATE, image_key


class StockRobosuiteEnv:
    """The same tasks, controller and observations as ``RobosuiteEnv`` through ``robosuite.make`` alone.

    Args:
        id: a name of ``sim.robosuite.TASKS``.
        image_size: height and width of the stock camera.
        cameras: of the scene; () = none.
        max_episode_steps: time limit; None = the task's own.
    """

    def __init__(
        self,
        id: str,
        *,
        image_size: int = 128,
        cameras: tuple[str, ...] | list[str] = ("agentview",),
        max_episode_steps: int | None = None,
    ) -> None:
        importlib.import_module("sim.rendering").setup_mujoco()
        import robosuite

        stock, self.instruction, limit = TASKS[id]
        self.cameras = tuple(cameras)
        self.env: Any = robosuite.make(
            stock,
            robots="Panda",
            controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
            has_renderer=False,
            has_offscreen_renderer=bool(cameras),
            use_camera_obs=bool(cameras),
            camera_names=list(cameras) or "agentview",
            camera_heights=image_size,
            camera_widths=image_size,
            control_freq=20,
            ignore_done=True,
            hard_reset=False,
        )
        self.ending = Ending(max_episode_steps or limit)
        first, _ = self.reset(0)
        self.spec = EnvSpec(
            id=id,
            state_dim=len(first[STATE]),
            env_state_dim=len(first[ENV_STATE]),
            action_low=(-1.0,) * 7,
            action_high=(1.0,) * 7,
            cameras={image_key(name): (image_size, image_size) for name in self.cameras},
            tasks=(self.instruction,),
            max_episode_steps=self.ending.limit,
            rate_hz=20.0,
        )

    def reset(self, seed: int | None) -> tuple[dict[str, np.ndarray], str]:
        """Begin the episode of ``seed``."""
        with global_seed(int(np.random.randint(2**31)) if seed is None else int(seed)):
            seen = self.env.reset()
        self.ending.begin()
        return self._split(seen), self.instruction

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, bool]:
        """One control step, with its pictures."""
        seen, _, _, _ = self.env.step(np.clip(np.asarray(action, np.float64), -1.0, 1.0))
        return (self._split(seen), *self.ending.step(bool(self.env._check_success())))

    def look(self) -> dict[str, np.ndarray]:
        """The pictures of the last step: they have been rendered anyway."""
        return self.pictures

    def close(self) -> None:
        """Free the scene."""
        self.env.close()

    def _split(self, seen: Any) -> dict[str, np.ndarray]:
        self.pictures = {
            image_key(name): np.ascontiguousarray(seen[f"{name}_image"][::-1].transpose(2, 0, 1))
            for name in self.cameras
        }
        state = np.concatenate([seen[name] for name in OWN]).astype(np.float32)
        return {STATE: state, ENV_STATE: seen["object-state"].astype(np.float32)}


def _gymnasium(id: str, limit: int) -> Any:
    """One environment without cameras for gymnasium's vectorisation."""
    import gymnasium

    class Stock(gymnasium.Env):
        def __init__(self) -> None:
            self.env = StockRobosuiteEnv(id, cameras=(), max_episode_steps=limit)
            size = self.env.spec.state_dim + self.env.spec.env_state_dim
            self.action_space = gymnasium.spaces.Box(-1, 1, (7,), np.float32)
            self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            return np.concatenate(list(self.env.reset(seed)[0].values())), {}

        def step(self, action: Any) -> Any:
            seen, reward, terminated, truncated, success = self.env.step(action)
            values = np.concatenate(list(seen.values()))
            return values, reward, terminated, truncated, {"success": success}

    return Stock()


def make(settings: dict[str, Any]) -> Callable[[int], None]:
    """``settings``: id, num_envs, limit. Counts control steps of all."""
    import gymnasium

    count = settings["num_envs"]
    one = partial(_gymnasium, settings["id"], settings["limit"])
    env = gymnasium.vector.AsyncVectorEnv([one] * count)
    generator = np.random.default_rng(0)
    env.reset(seed=0)

    def work(steps: int) -> None:
        for _ in range(steps // count):
            env.step(generator.uniform(-1, 1, (count, 7)).astype(np.float32))

    return work


if __name__ == "__main__":
    serve(make)
