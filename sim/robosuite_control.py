"""robosuite's operational-space controller and its physics steps, without their per-step bookkeeping.

A whole control step is one compiled call: MuJoCo's C functions are called by name from it, so that neither Python nor its
lock comes in between.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llvmlite.binding
import mujoco
import numba
import numpy as np
from numba import types
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error

llvmlite.binding.load_library_permanently(str(next(Path(mujoco.__file__).parent.glob("libmujoco.so*"))))

_POINTER = types.uint64
_STAGE = types.void(_POINTER, _POINTER)
_step1, _step2, _actuation, _acceleration, _constraint = (
    types.ExternalFunction(f"mj_{name}", _STAGE)
    for name in ("step1", "step2", "fwdActuation", "fwdAcceleration", "fwdConstraint")
)
_jac_site = types.ExternalFunction("mj_jacSite", types.void(*[_POINTER] * 4, types.int32))
_full_mass = types.ExternalFunction("mj_fullM", types.void(*[_POINTER] * 3))


@numba.njit(cache=True)
def _torques(
    jacobian: np.ndarray,
    mass: np.ndarray,
    bias: np.ndarray,
    qpos: np.ndarray,
    qvel: np.ndarray,
    arm_qpos: np.ndarray,
    arm_qvel: np.ndarray,
    position: np.ndarray,
    rotation: np.ndarray,
    goal_position: np.ndarray,
    goal_rotation: np.ndarray,
    kp: np.ndarray,
    kd: np.ndarray,
    rest: np.ndarray,
) -> np.ndarray:
    """Joint torques [7] of fixed-impedance ``OSC_POSE``; robosuite's own equations, in one compiled call.

    Args:
        jacobian: [6, nv] of the end effector's site.
        mass: [nv, nv].
        bias: [nv] Coriolis, centrifugal and gravity.
        qpos: [nq].
        qvel: [nv].
        arm_qpos: [7] where the arm is in ``qpos``.
        arm_qvel: [7] where it is in ``qvel``.
        position: [3] of the site.
        rotation: [3, 3] of the site.
        goal_position: [3].
        goal_rotation: [3, 3].
        kp: [6].
        kd: [6].
        rest: [7] joint positions that the null space is drawn to.
    """
    # In robosuite's own shapes and memory order: another order of summation is another last bit.
    moving, turning = np.dot(jacobian[:3], qvel), np.dot(jacobian[3:], qvel)
    count = len(arm_qvel)
    full, own, gravity = np.empty((count, 6)).T, np.empty((count, count)).T, np.empty(count)
    along, around = np.empty((count, 3)).T, np.empty((count, 3)).T
    joints, speeds = np.empty(count), np.empty(count)
    for i in range(count):
        joint = arm_qvel[i]
        full[:, i] = jacobian[:, joint]
        along[:, i], around[:, i] = jacobian[:3, joint], jacobian[3:, joint]
        joints[i], speeds[i], gravity[i] = qpos[arm_qpos[i]], qvel[joint], bias[joint]
        for j in range(count):
            own[i, j] = mass[joint, arm_qvel[j]]
    force = kp[:3] * (goal_position - position) - kd[:3] * moving
    torque = kp[3:] * orientation_error(goal_rotation, rotation) - kd[3:] * turning
    _, by_position, by_rotation, nullspace = opspace_matrices(own, full, along, around)
    wrench = np.concatenate((np.dot(by_position, force), np.dot(by_rotation, torque)))
    return np.dot(full.T, wrench) + gravity + nullspace_torques(own, nullspace, rest, joints, speeds)


@numba.njit(cache=True)
def _begin(model: int, data: int, solved: bool, again: bool) -> None:
    """What comes before the controller: positions, velocities and two rounds of the solver."""
    if not solved:
        _step1(model, data)
        _actuation(model, data)
        _acceleration(model, data)
        _constraint(model, data)
    if again:
        _constraint(model, data)


@numba.njit(cache=True, nogil=True)
def _control(
    model: int,
    data: int,
    substeps: int,
    stored_mass: int,
    site: int,
    jacobian: np.ndarray,
    mass: np.ndarray,
    first_mass: np.ndarray,
    first: bool,
    views: tuple[np.ndarray, ...],
    goal: tuple[np.ndarray, ...],
    places: tuple[np.ndarray, ...],
    limits: tuple[np.ndarray, ...],
    grip: np.ndarray,
    closing: np.ndarray,
) -> None:
    """All physics steps of a control step, the first one's ``_begin`` excepted; see ``PandaControl.step``."""
    bias, qpos, qvel, position, rotation, ctrl = views
    arm_qpos, arm_qvel, joints, fingers = places
    low, high, middle, half = limits
    for i in range(substeps):
        if i:
            _begin(model, data, False, True)
        _jac_site(model, data, jacobian.ctypes.data, jacobian[3:].ctypes.data, site)
        _full_mass(model, mass.ctypes.data, stored_mass)
        if first and i == 0:
            for j in range(len(arm_qvel)):
                for k in range(len(arm_qvel)):
                    mass[arm_qvel[j], arm_qvel[k]] = first_mass[j, k]
        torques = _torques(
            jacobian, mass, bias, qpos, qvel, arm_qpos, arm_qvel, position, rotation,
            goal[0], goal[1], goal[2], goal[3], goal[4],
        )  # fmt: skip
        for j in range(len(joints)):
            ctrl[joints[j]] = min(max(torques[j], low[j]), high[j])
        for j in range(len(fingers)):
            grip[j] = min(max(grip[j] + closing[j], -1.0), 1.0)
            ctrl[fingers[j]] = middle[j] + half[j] * grip[j]
        _step2(model, data)


def _count_of_volumes(model: Any) -> np.ndarray:
    """[1] how many volumes the model's meshes have, in its own memory, to be written.

    It is among a model's first numbers (``mjmodel.h``); [0] should another MuJoCo have it elsewhere.
    """
    sizes = np.ctypeslib.as_array((ctypes.c_int * 6).from_address(model._address))
    known = (model.nq, model.nv, model.nu, model.na, model.nbody, model.nbvh)
    return sizes[5:] if tuple(sizes) == known else sizes[:0]


@contextmanager
def _only_states(model: Any, volumes: np.ndarray) -> Iterator[None]:
    """MuJoCo's steps within leave out what no state depends on: sensors, and marks on the volumes of meshes.

    Every collision check first clears the marks of all volumes of all meshes, those that are only looked at included:
    a third of a megabyte with a Panda, a tenth of the time of a physics step.

    Args:
        model: of the steps.
        volumes: its ``_count_of_volumes``.
    """
    flags, count = model.opt.disableflags, model.nbvh
    model.opt.disableflags = flags | int(mujoco.mjtDisableBit.mjDSBL_SENSOR)
    volumes[:] = 0
    try:
        yield
    finally:
        model.opt.disableflags = flags
        volumes[:] = count


class PandaControl:
    """One control step of an environment with one Panda, state for state as robosuite's own ``step``.

    robosuite evaluates the whole dynamics three times in each physics step. Only the constraint solver's result differs
    between them (it starts from the last one's), so only the solver is run again. Sensors, and which volumes of meshes
    were looked at for collisions, are found out once per control step, at its end.

    Args:
        env: the robosuite environment, just reset: robosuite builds its controllers anew at each reset.
    """

    def __init__(self, env: Any) -> None:
        robot = env.robots[0]
        self.arm, self.gripper = robot.controller, robot.gripper
        self.model, self.data = env.sim.model._model, env.sim.data._data
        self.volumes = _count_of_volumes(self.model)
        names, data = env.sim.model, self.data
        self.site = names.site_name2id(self.arm.eef_name)
        self.position, self.rotation = data.site_xpos[self.site], data.site_xmat[self.site].reshape(3, 3)
        self.views = (data.qfrc_bias, data.qpos, data.qvel, self.position, self.rotation, data.ctrl)
        fingers = np.array([names.actuator_name2id(name) for name in self.gripper.actuators])
        places = (self.arm.qpos_index, self.arm.qvel_index, robot._ref_joint_actuator_indexes, fingers)
        self.places = tuple(np.array(place, np.int64) for place in places)
        ranges = self.model.actuator_ctrlrange[fingers]
        limits = (*robot.torque_limits, ranges.mean(axis=1), (ranges[:, 1] - ranges[:, 0]) / 2)
        self.limits = tuple(np.array(limit, np.float64) for limit in limits)
        self.jacobian, self.mass = np.zeros((6, self.model.nv)), np.zeros((self.model.nv, self.model.nv))
        # The first physics step of an episode is with what the controller saw before the fingers were placed.
        self.first, self.first_mass = True, np.ascontiguousarray(self.arm.mass_matrix)
        self.solved = False
        """Whether the state has been through ``mj_forward`` since it was reached."""

    def step(self, action: np.ndarray, substeps: int) -> None:
        """``action`` [7] for ``substeps`` physics steps; leaves everything derived of the state up to date."""
        arm = self.arm
        model, data = self.model._address, self.data._address
        _begin(model, data, self.solved, not self.first)
        arm.ee_pos, arm.ee_ori_mat, arm.new_update = self.position.copy(), self.rotation.copy(), False
        arm.set_goal(action[:6])
        goal = (arm.goal_pos, arm.goal_ori, arm.kp, arm.kd, arm.initial_joint)
        grip = np.zeros(2) + self.gripper.current_action  # one number until the fingers first move
        with _only_states(self.model, self.volumes):
            _control(
                model,
                data,
                substeps,
                self.data.qM.ctypes.data,
                self.site,
                self.jacobian,
                self.mass,
                self.first_mass,
                self.first,
                self.views,
                tuple(np.ascontiguousarray(value, np.float64) for value in goal),
                self.places,
                self.limits,
                grip,
                np.array([-1.0, 1.0]) * self.gripper.speed * np.sign(action[6]),
            )
        mujoco.mj_forward(self.model, self.data)
        self.gripper.current_action = grip
        self.first, self.solved = False, True
