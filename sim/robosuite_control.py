"""robosuite's operational-space controller, read and applied without its per-step bookkeeping."""

from __future__ import annotations

from typing import Any

import numpy as np


class PandaControl:
    """Writes ``data.ctrl`` at each physics step, as ``SingleArm.control`` under fixed-impedance ``OSC_POSE`` does.

    The equations are robosuite's own (its functions are called); left out are three evaluations of the dynamics,
    look-ups by name, and buffers of recent values that no observation of ours reads.

    Args:
        env: the robosuite environment, just reset: robosuite builds its controllers anew at each reset.
    """

    def __init__(self, env: Any) -> None:
        import mujoco
        from robosuite.utils import control_utils

        self._mujoco, self._math = mujoco, control_utils
        robot = env.robots[0]
        self.controller, self.gripper = robot.controller, robot.gripper
        self.model, self.data = env.sim.model._model, env.sim.data._data
        names = env.sim.model
        self.site = names.site_name2id(self.controller.eef_name)
        self.qpos, self.qvel = np.array(self.controller.qpos_index), np.array(self.controller.qvel_index)
        self.square = np.ix_(self.qvel, self.qvel)
        self.arm = robot._ref_joint_actuator_indexes
        self.low, self.high = robot.torque_limits
        self.fingers = [names.actuator_name2id(name) for name in self.gripper.actuators]
        ranges = self.model.actuator_ctrlrange[self.fingers]
        self.bias, self.weight = ranges.mean(axis=1), (ranges[:, 1] - ranges[:, 0]) / 2
        count = self.model.nv
        self.jacobian = np.zeros((6, count))
        self.mass = np.zeros((count, count))

    def apply(self, action: np.ndarray, new: bool) -> None:
        """Set ``ctrl`` from the state that ``mj_step1`` left; ``new``: ``action`` [7] has just been chosen."""
        model, data, arm = self.model, self.data, self.controller
        jacobian = self.jacobian
        self._mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], self.site)
        self._mujoco.mj_fullM(model, self.mass, data.qM)
        velocity = jacobian @ data.qvel
        position, rotation = data.site_xpos[self.site].copy(), data.site_xmat[self.site].reshape(3, 3).copy()
        if new:
            arm.ee_pos, arm.ee_ori_mat, arm.new_update = position, rotation, False
            arm.set_goal(action[:6])
        error = self._math.orientation_error(arm.goal_ori, rotation)
        force = arm.kp[:3] * (arm.goal_pos - position) - arm.kd[:3] * velocity[:3]
        torque = arm.kp[3:] * error - arm.kd[3:] * velocity[3:]
        full = np.ascontiguousarray(jacobian[:, self.qvel])
        mass = np.ascontiguousarray(self.mass[self.square])
        _, lambda_pos, lambda_ori, nullspace = self._math.opspace_matrices(mass, full, full[:3], full[3:])
        wrench = np.concatenate([lambda_pos @ force, lambda_ori @ torque])
        torques = full.T @ wrench + data.qfrc_bias[self.qvel]
        torques += self._math.nullspace_torques(
            mass, nullspace, arm.initial_joint, data.qpos[self.qpos], data.qvel[self.qvel]
        )
        data.ctrl[self.arm] = np.clip(torques, self.low, self.high)
        data.ctrl[self.fingers] = self.bias + self.weight * self.gripper.format_action(action[6:])
