"""ManiSkill tasks on CPU physics, one per process, with fast Cartesian or joint control and lazy cameras.

``ManiSkillEnv.step`` drives SAPIEN directly (joint targets, physics sub-steps) and asks ManiSkill only for
what defines the task: its scene, its initial states, its success and its privileged observation. So physics
and success are the stock task's; the Python around them is not paid for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sim.base import Ending
from sim.maniskill_build import (
    CONTROLS,
    GRIPPER,
    INSTRUCTIONS,
    JOINT_LEAD,
    build_scene,
    preload,
    privileged,
    render,
    shaping,
    spec_of,
)
from vla_rl.keys import ENV_STATE, STATE, image_key

__all__ = ["CONTROLS", "GRIPPER", "INSTRUCTIONS", "ManiSkillEnv", "preload"]


class ManiSkillEnv:
    """One ManiSkill task (see ``sim.base.SimEnv``).

    ``observation.state`` [16]: joint positions (7 rad, 2 m), TCP position (m), TCP quaternion (wxyz), all in
    the world frame. ``observation.environment_state``: joint velocities [9], then the task's own privileged
    observation.

    Args:
        id: environment id, e.g. ``PushCube-v1``; ids of ``sim.maniskill_tasks`` too.
        control: ``ee`` (TCP translation), ``ee_pose`` (and rotation vector) or ``joint`` deltas; each with the
            gripper's finger target last.
        image_size: height and width of every camera in pixels.
        cameras: names; ``base`` is a close view of the table from a corner, ``front`` from the front, ``wide`` the stock camera's.
        zoom: how much narrower than the camera's own its field of view is.
        camera_shift: metres along x, y, z of the world that the camera has been moved by, its direction kept.
        max_episode_steps: time limit; None = the task's own.
        after_success: control steps after success before the episode ends (``sim.base.Ending``); None = to the time limit.
        reward: ``sparse``: 1 at success; ``dense``: and at every step ManiSkill's normalised dense reward minus 1.
        task: the instruction; None = ``INSTRUCTIONS``.
        shadows: render shadows (slower; the lean default leaves them out everywhere).

    Raises:
        UserError: unknown id (nearest named), control or camera, a zoom that shows nothing, a dense reward that
            the task has not; no renderer.
    """

    def __init__(
        self,
        id: str,
        *,
        control: str = "ee",
        image_size: int = 96,
        cameras: tuple[str, ...] | list[str] = ("base",),
        zoom: float = 1.0,
        camera_shift: Sequence[float] = (0.0, 0.0, 0.0),
        max_episode_steps: int | None = None,
        after_success: int | None = 0,
        reward: str = "sparse",
        task: str | None = None,
        shadows: bool = False,
    ) -> None:
        self.id, self.control, self.cameras = id, control, tuple(cameras)
        self.instruction = task or INSTRUCTIONS.get(id, id.split("-")[0])
        self.env = build_scene(
            id,
            1,
            "physx_cpu",
            control=control,
            image_size=image_size,
            cameras=cameras,
            zoom=zoom,
            shift=camera_shift,
            reward=reward,
            shadows=shadows,
        )
        self.dense = reward == "dense"
        self.substeps = self.env._sim_steps_per_control
        self.robot = self.env.agent.robot._objs[0]
        self.joints = self.robot.get_active_joints()
        from sim.panda_ik import panda_ik

        self.ik = panda_ik(self.env.agent.urdf_path)
        self.spec = spec_of(
            self.env,
            id,
            control=control,
            image_size=image_size,
            cameras=cameras,
            env_state_dim=9 + privileged(self.env, self.env.get_info()).shape[1],
            max_episode_steps=max_episode_steps,
            instruction=self.instruction,
        )
        self.ending = Ending(self.spec.max_episode_steps, after_success)
        self.low = np.array(self.spec.action_low, np.float32)
        self.high = np.array(self.spec.action_high, np.float32)

    def reset(self, seed: int | None) -> tuple[dict[str, np.ndarray], str]:
        """Begin the episode of ``seed`` (None: a random one)."""
        self.env.reset(seed=int(np.random.randint(2**31)) if seed is None else int(seed))
        self.ending.begin()
        qpos = self.robot.get_qpos()
        self.ik.reset(qpos)
        self.target = qpos[:7].astype(np.float64)
        return self._observe(self.env.get_info()), self.instruction

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, bool]:
        """One control step; the action is clipped to the spec's bounds."""
        action = np.clip(action, self.low, self.high)
        qpos = self.robot.get_qpos()
        if self.control == "joint":
            ahead = self.target + action[:7] - qpos[:7]
            self.target = qpos[:7] + np.clip(ahead, -JOINT_LEAD, JOINT_LEAD)
            targets = self.target
        else:
            targets = self.ik.command(qpos.astype(np.float64), action[:-1])
        for joint, target in zip(self.joints, [*targets, action[-1], action[-1]], strict=True):
            joint.set_drive_target(float(target))
        for _ in range(self.substeps):
            self.env._before_simulation_step()
            self.env.scene.step()
            self.env._after_simulation_step()
        info = self.env.evaluate()
        reward, terminated, truncated, success = self.ending.step(bool(info["success"]))
        if self.dense:
            reward += float(shaping(self.env, info)[0])
        return self._observe(info), reward, terminated, truncated, success

    def look(self) -> dict[str, np.ndarray]:
        """Render the camera now."""
        if not self.cameras:
            return {}
        picture = render(self.env)[0].cpu().numpy()
        return {image_key(self.cameras[0]): np.ascontiguousarray(picture.transpose(2, 0, 1))}

    def close(self) -> None:
        """Free the scene."""
        self.env.close()

    def _observe(self, info: dict[str, Any]) -> dict[str, np.ndarray]:
        tcp = self.env.agent.tcp._objs[0].entity_pose
        state = np.concatenate([self.robot.get_qpos(), tcp.p, tcp.q]).astype(np.float32)
        env_state = np.concatenate([self.robot.get_qvel(), privileged(self.env, info)[0].numpy()]).astype(
            np.float32
        )
        return {STATE: state, ENV_STATE: env_state}
