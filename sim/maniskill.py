"""ManiSkill tasks on CPU physics, one per process, with fast Cartesian or joint control and lazy cameras.

``ManiSkillEnv.step`` drives SAPIEN directly (joint targets, physics sub-steps) and asks ManiSkill only for
what defines the task: its scene, its initial states, its success and its privileged observation. So physics
and success are the stock task's; the Python around them is not paid for.
"""

from __future__ import annotations

import difflib
import importlib
import logging
from typing import Any

import numpy as np

from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE, image_key

INSTRUCTIONS = {
    "TablePushCube-v1": "push the cube away from the robot",
    "TablePullCube-v1": "pull the cube towards the robot",
    "TableLiftCube-v1": "lift the cube off the table",
    "PushCube-v1": "push the cube to the target",
    "PullCube-v1": "pull the cube to the target",
    "PickCube-v1": "pick up the red cube and hold it at the goal",
    "StackCube-v1": "stack the red cube on the green cube",
    "LiftPegUpright-v1": "stand the peg upright",
    "PokeCube-v1": "poke the cube with the peg",
    "RollBall-v1": "roll the ball to the target",
    "PlaceSphere-v1": "place the sphere in the bin",
    "PegInsertionSide-v1": "insert the peg into the hole from the side",
    "PlugCharger-v1": "plug the charger into the receptacle",
}
"""What a person would say; ``task=`` overrides it."""

CONTROLS = {
    # name: (low, high, names) without the gripper; metres, radians per control step
    "ee": ([-0.05] * 3, [0.05] * 3, ("dx", "dy", "dz")),
    "ee_pose": ([-0.05] * 3 + [-0.2] * 3, [0.05] * 3 + [0.2] * 3, ("dx", "dy", "dz", "rx", "ry", "rz")),
    "joint": ([-0.1] * 7, [0.1] * 7, tuple(f"dq{i}" for i in range(1, 8))),
}
GRIPPER = (-0.01, 0.04)
"""Finger target in metres; below zero squeezes."""

JOINT_LEAD = 0.2
"""How far, in radians, a joint target may run ahead of the joint under ``control=joint``."""


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
        cameras: names; ``base`` is a close view of the table, ``wide`` the stock camera's.
        max_episode_steps: time limit; None = the task's own.
        task: the instruction; None = ``INSTRUCTIONS``.
        shadows: render shadows (slower; the lean default leaves them out everywhere).

    Raises:
        UserError: unknown id (nearest named), control or camera; no renderer.
    """

    def __init__(
        self,
        id: str,
        *,
        control: str = "ee",
        image_size: int = 96,
        cameras: tuple[str, ...] | list[str] = ("base",),
        max_episode_steps: int | None = None,
        task: str | None = None,
        shadows: bool = False,
    ) -> None:
        if control not in CONTROLS:
            raise UserError(f"env.control={control} is not one of {', '.join(CONTROLS)}")
        renderer = importlib.import_module("sim.rendering").setup()
        import gymnasium as gym
        import mani_skill.envs  # noqa: F401  (registers the tasks)
        from mani_skill.utils.registration import REGISTERED_ENVS

        import sim.maniskill_tasks  # noqa: F401  (registers ours)

        # It warns at every start that the stock scenes leave a pose at its default.
        logging.getLogger("mani_skill ").setLevel(logging.ERROR)  # the trailing blank is its name's

        if id not in REGISTERED_ENVS:
            near = ", ".join(difflib.get_close_matches(id, REGISTERED_ENVS, 3, 0.4)) or "see docs"
            raise UserError(f"unknown ManiSkill environment {id}: did you mean {near}?")
        self.id, self.control, self.cameras = id, control, tuple(cameras)
        self.instruction = task or INSTRUCTIONS.get(id, id.split("-")[0])
        self.env: Any = gym.make(
            id,
            obs_mode="state",
            control_mode="pd_joint_pos",
            robot_uids="panda",
            sim_backend="physx_cpu",
            render_backend=renderer.render_backend,
            sensor_configs=self._camera_configs(image_size),
            enable_shadow=shadows,
            num_envs=1,
        ).unwrapped
        self.env.reset(seed=0)
        self.substeps = self.env._sim_steps_per_control
        self.robot = self.env.agent.robot._objs[0]
        self.joints = self.robot.get_active_joints()
        from sim.panda_ik import PandaIK

        self.ik = PandaIK(self.env.agent.urdf_path)
        low, high, names = CONTROLS[control]
        limit = max_episode_steps or REGISTERED_ENVS[id].max_episode_steps or 100
        self.low = np.array([*low, GRIPPER[0]], np.float32)
        self.high = np.array([*high, GRIPPER[1]], np.float32)
        self.spec = EnvSpec(
            id=id,
            state_dim=16,
            env_state_dim=9 + len(self._extra({"is_grasped": None})),
            action_low=tuple(self.low.tolist()),
            action_high=tuple(self.high.tolist()),
            cameras={image_key(name): (image_size, image_size) for name in self.cameras},
            tasks=(self.instruction,),
            max_episode_steps=limit,
            rate_hz=float(self.env.control_freq),
            state_names=tuple(
                [f"joint{i}" for i in range(1, 8)]
                + ["finger1", "finger2", "tcp_x", "tcp_y", "tcp_z", "tcp_qw", "tcp_qx", "tcp_qy", "tcp_qz"]
            ),
            action_names=(*names, "gripper"),
        )

    def _camera_configs(self, size: int) -> dict[str, dict[str, Any]]:
        """Sensor settings for ManiSkill: the stock tasks have one camera, ``base_camera``."""
        from mani_skill.utils import sapien_utils

        known = {
            "base": {"pose": sapien_utils.look_at([0.42, -0.42, 0.42], [0.0, 0.0, 0.04]), "fov": 0.6},
            "wide": {},
        }
        if len(self.cameras) > 1 or any(c not in known for c in self.cameras):
            raise UserError(
                f"env.cameras={list(self.cameras)}: ManiSkill tasks have one of {', '.join(known)}"
            )
        common = {"width": size, "height": size, "shader_pack": "minimal"}
        if not self.cameras:
            return {"base_camera": common}
        return {"base_camera": known[self.cameras[0]] | common}

    def reset(self, seed: int | None) -> tuple[dict[str, np.ndarray], str]:
        """Begin the episode of ``seed`` (None: a random one)."""
        self.env.reset(seed=int(np.random.randint(2**31)) if seed is None else int(seed))
        self.steps = 0
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
        self.steps += 1
        info = self.env.evaluate()
        success = bool(info["success"])
        truncated = self.steps >= self.spec.max_episode_steps and not success
        return self._observe(info), float(success), success, truncated, success

    def look(self) -> dict[str, np.ndarray]:
        """Render the camera now."""
        if not self.cameras:
            return {}
        env = self.env
        for hidden in env._hidden_objects:
            hidden.hide_visual()
        env.scene.update_render(update_sensors=True, update_human_render_cameras=False)
        camera = env.scene.sensors["base_camera"]
        camera.capture()
        picture = camera.get_obs(depth=False, position=False, segmentation=False)["rgb"][0]
        image = np.ascontiguousarray(picture.cpu().numpy()[..., :3].transpose(2, 0, 1))
        return {image_key(self.cameras[0]): image}

    def close(self) -> None:
        """Free the scene."""
        self.env.close()

    def _extra(self, info: dict[str, Any]) -> np.ndarray:
        import torch

        if info.get("is_grasped", 0) is None:
            info = self.env.get_info()
        extra = self.env._get_obs_extra(info)
        parts = [
            torch.as_tensor(v, dtype=torch.float32).reshape(-1) for k, v in extra.items() if k != "tcp_pose"
        ]
        return torch.cat(parts).cpu().numpy() if parts else np.zeros(0, np.float32)

    def _observe(self, info: dict[str, Any]) -> dict[str, np.ndarray]:
        tcp = self.env.agent.tcp._objs[0].entity_pose
        state = np.concatenate([self.robot.get_qpos(), tcp.p, tcp.q]).astype(np.float32)
        env_state = np.concatenate([self.robot.get_qvel(), self._extra(info)]).astype(np.float32)
        return {STATE: state, ENV_STATE: env_state}
