"""ManiSkill with all rows in one physics scene: physx_cuda, for machines with a GPU.

Same tasks, actions and observations as ``ManiSkillEnv``; an episode is a function of its seed alone (rows are begun one
at a time, because ManiSkill draws a batch's initial states from one generator). The initial states of a seed differ
from those of physx_cpu, whose random numbers come from another device.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sim.base import Ending
from sim.joined import JoinedEnv
from sim.maniskill_build import (
    INSTRUCTIONS,
    JOINT_LEAD,
    build_scene,
    privileged,
    render,
    shaping,
    spec_of,
)
from sim.vector import make as make_processes
from vla_rl.environment import Observation, VlaVectorEnv, checked_action, row_mask, row_seeds
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE

log = logging.getLogger("vla_rl.sim")

BACKENDS = ("auto", "cpu", "cuda")


def make(
    ids: str | Sequence[str],
    num_envs: int = 1,
    num_workers: int | None = None,
    backend: str = "auto",
    **kwargs: Any,
) -> VlaVectorEnv:
    """A batch of ManiSkill environments on what this machine has.

    Args:
        ids: one id, or several: row i plays ``ids[i % len(ids)]``.
        num_envs: B.
        num_workers: processes of the cpu backend (see ``sim.vector.make``).
        backend: ``cpu`` (worker processes), ``cuda`` (one scene for each id) or ``auto``: cuda where it works.
        **kwargs: of ``ManiSkillEnv``.

    Raises:
        UserError: unknown backend, id or setting; cuda asked for without a GPU.
    """
    if backend not in BACKENDS:
        raise UserError(f"env.backend={backend} is not one of {', '.join(BACKENDS)}")
    if backend == "cuda" and not torch.cuda.is_available():
        raise UserError("env.backend=cuda: torch sees no CUDA device; set env.backend=cpu")
    if backend == "cuda" or (backend == "auto" and torch.cuda.is_available()):
        try:
            return _batched([ids] if isinstance(ids, str) else list(ids), num_envs, kwargs)
        except UserError:
            raise
        except Exception as error:
            if backend == "cuda":
                raise UserError(
                    f"env.backend=cuda does not work here ({error}); set env.backend=cpu"
                ) from error
            log.warning("physx_cuda does not work here (%s): falling back to worker processes", error)
    return make_processes("sim.maniskill:ManiSkillEnv", ids, num_envs, num_workers, **kwargs)


def _batched(ids: list[str], num_envs: int, kwargs: dict[str, Any]) -> VlaVectorEnv:
    rows = [ids[i % len(ids)] for i in range(num_envs)]
    used = list(dict.fromkeys(rows))
    envs: list[VlaVectorEnv] = []
    try:
        for id in used:
            envs.append(ManiSkillBatchEnv(id, rows.count(id), **kwargs))
            envs[-1].reset(seed=0)
            envs[-1].look([0])  # shows now whether it can render
    except BaseException:
        for env in envs:
            env.close()
        raise
    return envs[0] if len(envs) == 1 else JoinedEnv(envs, [used.index(id) for id in rows])


class ManiSkillBatchEnv(VlaVectorEnv):
    """B rows of one task; arguments as for ``sim.maniskill.ManiSkillEnv``.

    Args:
        id: environment id.
        num_envs: B.
        backend: ``physx_cuda``, or ``physx_cpu`` for a single row.
    """

    def __init__(
        self,
        id: str,
        num_envs: int,
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
        backend: str = "physx_cuda",
    ) -> None:
        self.closed = True  # until it is complete: gymnasium's destructor asks
        scene = {"control": control, "image_size": image_size, "cameras": cameras}
        looks = {"zoom": zoom, "shift": camera_shift, "shadows": shadows}
        self.env = build_scene(id, num_envs, backend, reward=reward, **looks, **scene)
        self.dense = reward == "dense"
        self.control, self.cuda = control, backend == "physx_cuda"
        self.instruction = task or INSTRUCTIONS.get(id, id.split("-")[0])
        self.robot = self.env.agent.robot
        from sim.panda_ik import panda_ik

        self.ik = [panda_ik(self.env.agent.urdf_path) for _ in range(num_envs)]
        self.targets = np.zeros((num_envs, 9))
        spec = spec_of(
            self.env,
            id,
            env_state_dim=9 + privileged(self.env, self.env.get_info()).shape[1],
            max_episode_steps=max_episode_steps,
            instruction=self.instruction,
            **scene,
        )
        self.set_spaces(spec, num_envs)
        self.endings = [Ending(spec.max_episode_steps, after_success) for _ in range(num_envs)]
        self.finished = torch.ones(num_envs, dtype=torch.bool)
        self.closed = False

    def reset(self, *, seed: Any = None, options: dict | None = None) -> tuple[Observation, dict]:  # type: ignore[override]
        """See ``VlaVectorEnv``."""
        self._check_open()
        seeds, mask = row_seeds(seed, self.num_envs), row_mask(options, self.num_envs)
        rows = np.flatnonzero(mask)
        for row in rows:
            chosen = seeds[row]
            if chosen is None:
                chosen = int(np.random.randint(2**31))
            self.env.reset(seed=chosen, options={"env_idx": torch.tensor([row], device=self.env.device)})
        qpos = self._qpos()
        for row in rows:
            self.ik[row].reset(qpos[row])
            self.targets[row, :7] = qpos[row, :7]
        for row in rows:
            self.endings[row].begin()
        self.finished[mask] = False
        return self._observe(self.env.get_info()), {}

    def step(self, action: Any) -> tuple[Observation, Tensor, Tensor, Tensor, dict[str, Any]]:  # type: ignore[override]
        """See ``VlaVectorEnv``."""
        self._check_open()
        wanted = checked_action(action, self.env_spec, self.num_envs).numpy()
        if self.finished.any():
            rows = self.finished.nonzero().flatten().tolist()
            raise RuntimeError(
                f"rows {rows} have finished: reset them (options={{'reset_mask': ...}}) before step"
            )
        self._drive(np.clip(wanted, self.env_spec.action_low, self.env_spec.action_high))
        env = self.env
        for _ in range(env._sim_steps_per_control):
            env._before_simulation_step()
            env.scene.step()
            env._after_simulation_step()
        if self.cuda:
            env.scene._gpu_fetch_all()
        info = env.evaluate()
        now = zip(self.endings, info["success"].reshape(-1).tolist(), strict=True)
        reward, terminated, truncated, success = (
            torch.tensor(column) for column in zip(*(ending.step(s) for ending, s in now), strict=True)
        )
        if self.dense:
            reward = reward + shaping(self.env, info)
        self.finished = terminated | truncated
        return self._observe(info), reward, terminated, truncated, {"success": success}

    def _drive(self, action: np.ndarray) -> None:
        """Joint position targets from actions [B, A]."""
        qpos = self._qpos()
        if self.control == "joint":
            ahead = self.targets[:, :7] + action[:, :7] - qpos[:, :7]
            self.targets[:, :7] = qpos[:, :7] + np.clip(ahead, -JOINT_LEAD, JOINT_LEAD)
        else:
            for row, ik in enumerate(self.ik):
                self.targets[row, :7] = ik.command(qpos[row], action[row, :-1])
        self.targets[:, 7:] = action[:, -1:]
        targets = torch.as_tensor(self.targets, dtype=torch.float32, device=self.env.device)
        joints = self.robot.active_joints
        indices = torch.arange(len(joints), device=self.env.device, dtype=torch.int32)
        self.robot.set_joint_drive_targets(targets, joints, indices)
        if self.cuda:
            self.env.scene.px.gpu_apply_articulation_target_position()

    def look(self, rows: Any = None) -> dict[str, Tensor]:
        """See ``VlaVectorEnv``; a GPU renders all rows at once."""
        self._check_open()
        wanted = list(range(self.num_envs)) if rows is None else [int(r) for r in rows]
        if any(not 0 <= r < self.num_envs for r in wanted):
            raise IndexError(f"look at rows {wanted}: there are {self.num_envs}")
        if not self.env_spec.cameras:
            return {}
        pictures = render(self.env)[wanted].permute(0, 3, 1, 2).contiguous().cpu()
        return {key: pictures for key in self.env_spec.cameras}  # noqa: C420

    def close(self, **_: Any) -> None:
        """Free the scene; safe to call twice."""
        if not self.closed:
            self.closed = True
            self.env.close()

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError(f"environment {self.env_spec.id} is closed")

    def _qpos(self) -> np.ndarray:
        return self.robot.get_qpos().cpu().numpy().astype(np.float64).reshape(self.num_envs, -1)

    def _observe(self, info: dict[str, Any]) -> Observation:
        def flat(value: Any) -> Tensor:
            return torch.as_tensor(value, dtype=torch.float32).reshape(self.num_envs, -1).cpu()

        tcp = self.env.agent.tcp.pose.raw_pose
        return {
            STATE: torch.cat([flat(self.robot.get_qpos()), flat(tcp)], 1),
            ENV_STATE: torch.cat([flat(self.robot.get_qvel()), privileged(self.env, info)], 1),
            "task": [self.instruction] * self.num_envs,
        }
