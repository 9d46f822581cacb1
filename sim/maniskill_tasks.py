"""One table, one blue cube, three sentences: tasks that only the instruction tells apart.

Physics, scene, cube placement and the push and pull success rules are ManiSkill's own PushCube-v1 and
PullCube-v1; the goal discs are hidden from the policy's cameras, and for one seed the first image of all
three is the same. Importing this module registers ``TablePushCube-v1``, ``TablePullCube-v1`` and
``TableLiftCube-v1``.
"""

from __future__ import annotations

from typing import Any

import torch
from mani_skill.envs.tasks.tabletop.pull_cube import PullCubeEnv
from mani_skill.envs.tasks.tabletop.push_cube import PushCubeEnv
from mani_skill.utils.registration import register_env


class _SharedScene:
    """Same observation for every task: the cube's pose and velocity, and no goal marker in any picture."""

    def _load_scene(self, options: dict) -> None:
        super()._load_scene(options)  # type: ignore[misc]
        self._hidden_objects.append(self.goal_region)  # type: ignore[attr-defined]

    def _get_obs_extra(self, info: dict) -> dict[str, torch.Tensor]:
        cube = self.obj  # type: ignore[attr-defined]
        return {
            "tcp_pose": self.agent.tcp.pose.raw_pose,  # type: ignore[attr-defined]
            "obj_pose": cube.pose.raw_pose,
            "obj_velocity": cube.linear_velocity,
        }


@register_env("TablePushCube-v1", max_episode_steps=60, override=True)
class TablePushCube(_SharedScene, PushCubeEnv):
    """Push the cube at least 0.1 m away from the robot (PushCube-v1's success rule)."""


@register_env("TablePullCube-v1", max_episode_steps=60, override=True)
class TablePullCube(_SharedScene, PullCubeEnv):
    """Pull the cube at least 0.1 m towards the robot (PullCube-v1's success rule)."""


@register_env("TableLiftCube-v1", max_episode_steps=60, override=True)
class TableLiftCube(_SharedScene, PushCubeEnv):
    """Hold the cube in the gripper at least ``lift_height`` above the table."""

    lift_height = 0.1

    def evaluate(self) -> dict[str, torch.Tensor]:
        """Success: grasped and lifted."""
        lifted = self.obj.pose.p[..., 2] > self.cube_half_size + self.lift_height
        return {"success": lifted & self.agent.is_grasping(self.obj)}

    def compute_dense_reward(self, obs: Any, action: Any, info: dict) -> torch.Tensor:
        """[B], staged as PickCube-v1's: the hand is at the cube (at most 1), holds it (1), has lifted it (1); success 4."""
        cube = self.obj.pose.p
        reached = 1 - torch.tanh(5 * torch.linalg.norm(cube - self.agent.tcp.pose.p, dim=1))
        held = self.agent.is_grasping(self.obj)
        lifted = ((cube[:, 2] - self.cube_half_size) / self.lift_height).clamp(0, 1)
        reward = reached + held * (1 + lifted)
        return torch.where(info["success"], torch.full_like(reward, 4.0), reward)

    def compute_normalized_dense_reward(self, obs: Any, action: Any, info: dict) -> torch.Tensor:
        """The same, at most 1."""
        return self.compute_dense_reward(obs, action, info) / 4
