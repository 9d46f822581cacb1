"""What the single and the batched ManiSkill environments share: names, bounds, scene, spec."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sim.base import metres
from sim.rendering import setup
from sim.rendering.shaders import has_surroundings, unlit_by_surroundings
from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.keys import image_key

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

STATE_NAMES = (
    *(f"joint{i}" for i in range(1, 8)),
    *("finger1", "finger2", "tcp_x", "tcp_y", "tcp_z", "tcp_qw", "tcp_qx", "tcp_qy", "tcp_qz"),
)


def preload() -> None:
    """Import the simulator, for processes that will be forked off this one."""
    setup()
    _tasks()


def _tasks() -> Any:
    """ManiSkill's registry, with its tasks and ours in it."""
    import mani_skill.envs  # noqa: F401
    from mani_skill.utils.registration import REGISTERED_ENVS

    import sim.maniskill_tasks  # noqa: F401

    return REGISTERED_ENVS


def build_scene(
    id: str,
    num_envs: int,
    backend: str,
    *,
    control: str,
    image_size: int,
    cameras: Sequence[str],
    zoom: float,
    shift: Sequence[float],
    reward: str,
    shadows: bool,
) -> Any:
    """The unwrapped stock environment, reset once.

    Args:
        backend: ``physx_cpu`` or ``physx_cuda``.

    Raises:
        UserError: unknown id (nearest named), control or camera, a zoom that shows nothing, a shift that is not three
            numbers, a reward that the task has not; no renderer.
    """
    if zoom <= 0:
        raise UserError(f"env.zoom={zoom} must be above 0")
    moved = metres(shift)
    if reward not in ("sparse", "dense"):
        raise UserError(f"env.reward={reward} is not one of sparse, dense")
    if control not in CONTROLS:
        raise UserError(f"env.control={control} is not one of {', '.join(CONTROLS)}")
    render_backend, lean = "gpu", False
    if backend == "physx_cpu":
        renderer = setup()
        render_backend, lean = renderer.render_backend, bool(cameras) and renderer.kind != "gpu"
    import gymnasium as gym

    tasks = _tasks()
    # It warns at every start that the stock scenes leave a pose at its default.
    logging.getLogger("mani_skill ").setLevel(logging.ERROR)  # the trailing blank is its name's

    if id not in tasks:
        near = ", ".join(difflib.get_close_matches(id, tasks, 3, 0.4)) or "see docs"
        raise UserError(f"unknown ManiSkill environment {id}: did you mean {near}?")

    def built() -> Any:
        env = made(_camera_configs(cameras, image_size, zoom, moved))
        if "wide" in cameras and (zoom != 1 or moved.any()):  # only the built task knows its own camera
            own = env._sensor_configs["base_camera"]
            env.close()
            env = made({"base_camera": _view(own.pose, own.fov, zoom, moved) | _common(image_size)})
        return env

    def made(sensors: dict[str, dict[str, Any]]) -> Any:
        env: Any = gym.make(
            id,
            obs_mode="state",
            control_mode="pd_joint_pos",
            robot_uids="panda",
            sim_backend=backend,
            render_backend=render_backend,
            sensor_configs=sensors,
            enable_shadow=shadows,
            num_envs=num_envs,
        ).unwrapped
        env.reset(seed=0)
        if reward == "dense":
            _check_dense(env, id)
        return env

    if not lean:
        return built()
    with unlit_by_surroundings():
        env = built()
    if has_surroundings(env):  # they weigh in after all
        env.close()
        env = built()
    return env


def _view(pose: Any, fov: float, zoom: float, moved: np.ndarray) -> dict[str, Any]:
    """A camera at ``pose`` moved by ``moved`` [3], that shows 1 / ``zoom`` of the width of a field of view of ``fov`` radians."""
    import sapien

    place = pose.sp if hasattr(pose, "sp") else pose
    return {
        "pose": sapien.Pose(place.p + moved.astype(np.float32), place.q),
        "fov": 2 * math.atan(math.tan(fov / 2) / zoom),
    }


def _common(size: int) -> dict[str, Any]:
    return {"width": size, "height": size, "shader_pack": "minimal"}


def _camera_configs(
    cameras: Sequence[str], size: int, zoom: float, moved: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Sensor settings for ManiSkill: the stock tasks have one camera, ``base_camera``."""
    from mani_skill.utils import sapien_utils

    known = {
        "base": _view(sapien_utils.look_at([0.42, -0.42, 0.42], [0.0, 0.0, 0.04]), 0.6, zoom, moved),
        # In the plane that the robot is symmetric about (docs/mirror.md).
        "front": _view(sapien_utils.look_at([0.58, 0.0, 0.42], [0.0, 0.0, 0.04]), 0.6, zoom, moved),
        "wide": {},
    }
    if len(cameras) > 1 or any(c not in known for c in cameras):
        raise UserError(f"env.cameras={list(cameras)}: ManiSkill tasks have one of {', '.join(known)}")
    return {"base_camera": (known[cameras[0]] if cameras else {}) | _common(size)}


def spec_of(
    env: Any,
    id: str,
    *,
    control: str,
    image_size: int,
    cameras: Sequence[str],
    env_state_dim: int,
    max_episode_steps: int | None,
    instruction: str,
) -> EnvSpec:
    """Dimensions, bounds and names of a built scene."""
    from mani_skill.utils.registration import REGISTERED_ENVS

    low, high, names = CONTROLS[control]
    return EnvSpec(
        id=id,
        state_dim=len(STATE_NAMES),
        env_state_dim=env_state_dim,
        action_low=tuple(_single([*low, GRIPPER[0]])),
        action_high=tuple(_single([*high, GRIPPER[1]])),
        cameras={image_key(name): (image_size, image_size) for name in cameras},
        tasks=(instruction,),
        max_episode_steps=max_episode_steps or REGISTERED_ENVS[id].max_episode_steps or 100,
        rate_hz=float(env.control_freq),
        state_names=STATE_NAMES,
        action_names=(*names, "gripper"),
    )


def _single(values: Sequence[float]) -> list[float]:
    """Rounded to float32, as actions are."""
    return np.asarray(values, np.float32).tolist()


def shaping(env: Any, info: dict[str, Any]) -> Any:
    """Of every row, float32 [B]: the task's own normalised dense reward minus 1, so that an episode which succeeds sooner has more."""
    import torch

    idle = torch.zeros(env.num_envs, *env.agent.single_action_space.shape, device=env.device)
    return env.compute_normalized_dense_reward(obs=None, action=idle, info=info).float().cpu() - 1


def _check_dense(env: Any, id: str) -> None:
    try:
        shaping(env, env.evaluate())
    except NotImplementedError:
        env.close()
        raise UserError(f"env.reward=dense: {id} has no dense reward; set env.reward=sparse") from None


def render(env: Any) -> Any:
    """Picture of every row now, uint8 [B, H, W, 3]; goal markers hidden."""
    for hidden in env._hidden_objects:
        hidden.hide_visual()
    env.scene.update_render(update_sensors=True, update_human_render_cameras=False)
    camera = env.scene.sensors["base_camera"]
    camera.capture()
    return camera.get_obs(depth=False, position=False, segmentation=False)["rgb"][..., :3]


def privileged(env: Any, info: dict[str, Any]) -> Any:
    """The task's own privileged observation of every row but for the TCP's pose, float32 [B, n]."""
    import torch

    extra = env._get_obs_extra(info)
    parts = [
        torch.as_tensor(value, dtype=torch.float32).reshape(env.num_envs, -1).cpu()
        for key, value in extra.items()
        if key != "tcp_pose"
    ]
    return torch.cat(parts, 1) if parts else torch.zeros(env.num_envs, 0)
