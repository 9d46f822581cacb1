"""Differential inverse kinematics of the Panda by pinocchio: Cartesian targets to joint targets, fast.

ManiSkill's stock end-effector controller solves this in Python for three times the cost of the physics; here
one control step costs two damped least-squares iterations in pinocchio's C++ (tens of microseconds).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pinocchio as pin  # pyright: ignore[reportMissingImports]  (the wheel puts it on a path of its own)

TCP_FRAME = "panda_hand_tcp"


@lru_cache(maxsize=4)
def _model(urdf: str) -> pin.Model:
    return pin.buildModelFromUrdf(urdf)


class PandaIK:
    """Tracks a Cartesian target of the tool centre point (TCP) in the robot's base frame.

    The target is what the commands add up to, not where the lagging arm is, so a zero command holds still
    and the orientation never drifts.

    Args:
        urdf: path of the Panda's URDF.
        max_lead: how far, in metres, the target may run ahead of the arm.
    """

    def __init__(self, urdf: str, max_lead: float = 0.08) -> None:
        self.model = _model(urdf)
        self.data = self.model.createData()
        self.frame = self.model.getFrameId(TCP_FRAME)
        self.max_lead = max_lead
        self.damping = 1e-4 * np.eye(6)
        self.lower = self.model.lowerPositionLimit
        self.upper = self.model.upperPositionLimit

    def forward(self, qpos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position [3] (m) and rotation [3, 3] of the TCP for joints [9] (rad, m)."""
        pin.framesForwardKinematics(self.model, self.data, qpos)
        pose = self.data.oMf[self.frame]
        return pose.translation.copy(), pose.rotation.copy()

    def reset(self, qpos: np.ndarray) -> None:
        """Begin from joints [9]."""
        self.joints = qpos.astype(np.float64).copy()
        self.position, self.rotation = self.forward(self.joints)

    def command(self, qpos: np.ndarray, delta: np.ndarray) -> np.ndarray:
        """Move the target by ``delta`` and solve for it.

        Args:
            qpos: [9] the joints now.
            delta: [3] metres, or [6] metres and a rotation vector in radians, base frame.

        Returns:
            [7] joint position targets in radians, inside the joint limits.
        """
        now, _ = self.forward(qpos)
        target = self.position + delta[:3]
        lead = target - now
        distance = np.linalg.norm(lead)
        if distance > self.max_lead:
            target = now + lead * (self.max_lead / distance)
        self.position = target
        if len(delta) == 6:
            self.rotation = pin.exp3(np.asarray(delta[3:], np.float64)) @ self.rotation
        q = self.joints
        for _ in range(2):
            position, rotation = self.forward(q)
            error = np.concatenate([self.position - position, pin.log3(self.rotation @ rotation.T)])
            jacobian = pin.computeFrameJacobian(
                self.model, self.data, q, self.frame, pin.ReferenceFrame.LOCAL_WORLD_ALIGNED
            )[:, :7]
            step = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + self.damping, error)
            q = q.copy()
            q[:7] = np.clip(q[:7] + np.clip(step, -0.3, 0.3), self.lower[:7], self.upper[:7])
        self.joints = q
        return q[:7]
