"""ManiSkill as it comes: stock controller, camera rendered at every step with the stock shader and shadows.

The yardstick of ``vla-rl bench collector``; not meant for training.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from sim.maniskill import CONTROLS, GRIPPER, INSTRUCTIONS
from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE, image_key

REACH = 0.1
"""Metres that action 1 of the stock ``pd_ee_delta_pos`` controller asks for."""


class StockManiSkillEnv:
    """The same tasks and action units as ``ManiSkillEnv(control="ee")`` through ``gym.make`` alone.

    Args:
        id: environment id.
        image_size: height and width of the stock camera.
        max_episode_steps: time limit; None = the task's own.

    Raises:
        UserError: unknown id; no renderer.
    """

    def __init__(self, id: str, *, image_size: int = 128, max_episode_steps: int | None = None) -> None:
        renderer = importlib.import_module("sim.rendering").setup()
        import gymnasium as gym
        import mani_skill.envs  # noqa: F401  (registers the tasks)
        from mani_skill.utils.registration import REGISTERED_ENVS

        import sim.maniskill_tasks  # noqa: F401  (registers ours)

        if id not in REGISTERED_ENVS:
            raise UserError(f"unknown ManiSkill environment {id}")
        self.env: Any = gym.make(
            id,
            obs_mode="state_dict+rgb",
            control_mode="pd_ee_delta_pos",
            sim_backend="physx_cpu",
            render_backend=renderer.render_backend,
            sensor_configs={"width": image_size, "height": image_size},
            num_envs=1,
        )
        self.instruction = INSTRUCTIONS.get(id, id.split("-")[0])
        low, high, names = CONTROLS["ee"]
        self.low = np.array([*low, GRIPPER[0]], np.float32)
        self.high = np.array([*high, GRIPPER[1]], np.float32)
        self.limit = max_episode_steps or REGISTERED_ENVS[id].max_episode_steps or 100
        observation, _ = self.reset(0)
        self.spec = EnvSpec(
            id=id,
            state_dim=len(observation[STATE]),
            env_state_dim=len(observation[ENV_STATE]),
            action_low=tuple(self.low.tolist()),
            action_high=tuple(self.high.tolist()),
            cameras={image_key("base"): (image_size, image_size)},
            tasks=(self.instruction,),
            max_episode_steps=self.limit,
            rate_hz=float(self.env.unwrapped.control_freq),
            action_names=(*names, "gripper"),
        )

    def reset(self, seed: int | None) -> tuple[dict[str, np.ndarray], str]:
        """Begin the episode of ``seed``."""
        observation, _ = self.env.reset(seed=seed)
        self.steps = 0
        return self._split(observation), self.instruction

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, bool]:
        """One control step, with its picture."""
        action = np.clip(action, self.low, self.high)
        middle, half = (self.low[3] + self.high[3]) / 2, (self.high[3] - self.low[3]) / 2
        stock = np.concatenate([action[:3] / REACH, (action[3:] - middle) / half]).astype(np.float32)
        observation, _, _, _, info = self.env.step(stock)
        self.steps += 1
        success = bool(info["success"])
        return (
            self._split(observation),
            float(success),
            success,
            self.steps >= self.limit and not success,
            success,
        )

    def look(self) -> dict[str, np.ndarray]:
        """The picture of the last step: it has been rendered anyway."""
        return {image_key("base"): self.picture}

    def close(self) -> None:
        """Free the scene."""
        self.env.close()

    def _split(self, observation: dict[str, Any]) -> dict[str, np.ndarray]:
        rgb = observation["sensor_data"]["base_camera"]["rgb"]
        self.picture = np.ascontiguousarray(np.asarray(rgb)[0].transpose(2, 0, 1))
        agent, extra = observation["agent"], observation["extra"]
        pose = np.asarray(extra["tcp_pose"], np.float32).reshape(-1)
        rest = [np.asarray(v, np.float32).reshape(-1) for k, v in extra.items() if k != "tcp_pose"]
        state = np.concatenate([np.asarray(agent["qpos"], np.float32).reshape(-1), pose])
        env_state = np.concatenate([np.asarray(agent["qvel"], np.float32).reshape(-1), *rest])
        return {STATE: state, ENV_STATE: env_state}
