"""Differential inverse kinematics by pinocchio: Cartesian steps to joint targets, in simulation and on the arm.

ManiSkill's stock end-effector controller solves this in Python for three times the cost of the physics; here
one control step costs two damped least-squares iterations in pinocchio's C++ (tens of microseconds).
"""

from __future__ import annotations

import numpy as np
import pinocchio as pin  # pyright: ignore[reportMissingImports]  (the wheel puts it on a path of its own)


class DifferentialIK:
    """Tracks a Cartesian target of the tool centre point (TCP) in the robot's base frame.

    The target is what the commands add up to, not where the lagging arm is, so a zero command holds still
    and the orientation never drifts.

    Args:
        model: the arm, its own joints first (fingers may follow).
        frame: index of the TCP's frame.
        count: n, joints of the arm.
        max_lead: how far, in metres, the target may run ahead of the arm.
        lower: [n] lowest joint positions; None = the model's.
        upper: [n] highest.
        box: two corners [3] (metres) that the target stays between; None = anywhere.
    """

    def __init__(
        self,
        model: pin.Model,
        frame: int,
        count: int,
        max_lead: float = 0.08,
        lower: np.ndarray | None = None,
        upper: np.ndarray | None = None,
        box: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        self.model, self.data = model, model.createData()
        self.frame, self.count, self.max_lead = frame, count, max_lead
        self.box = box
        self.damping = 1e-4 * np.eye(6)
        self.lower = model.lowerPositionLimit[:count] if lower is None else lower
        self.upper = model.upperPositionLimit[:count] if upper is None else upper

    def forward(self, qpos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position [3] (m) and rotation [3, 3] of the TCP for all the model's joints (rad, m)."""
        pin.framesForwardKinematics(self.model, self.data, qpos)
        pose = self.data.oMf[self.frame]
        return pose.translation.copy(), pose.rotation.copy()

    def reset(self, qpos: np.ndarray) -> None:
        """Begin from the model's joints."""
        self.joints = qpos.astype(np.float64).copy()
        self.position, self.rotation = self.forward(self.joints)

    def command(self, qpos: np.ndarray, delta: np.ndarray) -> np.ndarray:
        """Move the target by ``delta`` and solve for it.

        Args:
            qpos: all the model's joints now.
            delta: [3] metres, or [6] metres and a rotation vector in radians, base frame.

        Returns:
            [n] joint position targets in radians, inside the joint limits.
        """
        count = self.count
        now, _ = self.forward(qpos)
        target = self.position + delta[:3]
        lead = target - now
        distance = np.linalg.norm(lead)
        if distance > self.max_lead:
            target = now + lead * (self.max_lead / distance)
        self.position = target if self.box is None else np.clip(target, *self.box)
        if len(delta) == 6:
            self.rotation = pin.exp3(np.asarray(delta[3:], np.float64)) @ self.rotation
        q = self.joints
        for _ in range(2):
            position, rotation = self.forward(q)
            error = np.concatenate([self.position - position, pin.log3(self.rotation @ rotation.T)])
            jacobian = pin.computeFrameJacobian(
                self.model, self.data, q, self.frame, pin.ReferenceFrame.LOCAL_WORLD_ALIGNED
            )[:, :count]
            step = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + self.damping, error)
            q = q.copy()
            q[:count] = np.clip(q[:count] + np.clip(step, -0.3, 0.3), self.lower, self.upper)
        self.joints = q
        return q[:count]
