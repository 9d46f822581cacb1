"""Where the arm's tool is, how fast it moves and how near its links are to each other (pinocchio)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pinocchio as pin  # pyright: ignore[reportMissingImports]  (the wheel puts it on a path of its own)

from real.contract import Capsule, RobotContract
from vla_rl.config import ROOT, nearest
from vla_rl.errors import UserError


def urdf_path(urdf: str) -> Path:
    """A URDF as given, in the repository, or inside an installed package (``mani_skill/assets/...``).

    Raises:
        UserError: it is nowhere.
    """
    for path in (Path(urdf).expanduser(), ROOT / urdf):
        if path.is_file():
            return path
    package, _, inside = urdf.partition("/")
    found = importlib.util.find_spec(package) if package.isidentifier() and inside else None
    for folder in (found.submodule_search_locations or []) if found else []:
        if (Path(folder) / inside).is_file():
            return Path(folder) / inside
    raise UserError(f"urdf: there is no {urdf}, here or in the repository")


class ArmModel:
    """Kinematics of the contract's joints; every other joint of the URDF stays at its neutral position.

    Vectors are [n], in the order of ``contract.joints``; poses are in the URDF's base frame.

    Args:
        contract: the robot.

    Raises:
        UserError: a joint or frame that the URDF does not have, or a home in self-collision.
    """

    def __init__(self, contract: RobotContract) -> None:
        path = urdf_path(contract.urdf)
        try:
            full = pin.buildModelFromUrdf(str(path))
        except Exception as error:
            raise UserError(f"{path} is no URDF: {str(error).splitlines()[0]}") from error
        names = list(full.names)[1:]
        for joint in contract.joints:
            if joint not in names:
                raise UserError(f"{path.name} has no joint {joint}: {nearest(joint, names)}")
        locked = [full.getJointId(name) for name in names if name not in contract.joints]
        self.model = pin.buildReducedModel(full, locked, pin.neutral(full))
        order = list(self.model.names)[1:]
        if self.model.nq != len(order):
            raise UserError(f"{path.name}: continuous joints are not supported, give them limits")
        self.order = np.array([contract.joints.index(name) for name in order])
        self.inverse = np.argsort(self.order)
        self.data = self.model.createData()
        self.tool = self._frame(contract.tool.frame)
        self.geometry, self.pairs = self._shapes(contract)
        self.geometry_data = self.geometry.createData()
        self.levers = self._levers()
        """[n] metres: no point of a shape moves further than ``levers @ |change of joints|``."""
        home = np.array(contract.home)
        distance, pair = self.clearance(home)
        if distance < contract.collision.margin:
            raise UserError(
                f"home is in self-collision: {pair[0]} and {pair[1]} are {distance:.3f} m apart "
                f"(collision.margin={contract.collision.margin}; collision.ignore exempts a pair)"
            )

    def _frame(self, name: str) -> int:
        if not self.model.existFrame(name):
            raise UserError(
                f"the URDF has no frame {name}: {nearest(name, [f.name for f in self.model.frames])}"
            )
        return self.model.getFrameId(name)

    def _shapes(self, contract: RobotContract) -> tuple[pin.GeometryModel, list[tuple[str, str]]]:
        geometry = pin.GeometryModel()
        ignored = {frozenset(pair) for pair in contract.collision.ignore}
        shapes: list[tuple[str, int]] = []
        for capsule in contract.collision.capsules:
            frame = self.model.frames[self._frame(capsule.frame)]
            geometry.addGeometryObject(_capsule(capsule, frame, len(shapes)))
            shapes.append((capsule.frame, frame.parentJoint))
        pairs = []
        for i, (first, a) in enumerate(shapes):
            for j, (second, b) in enumerate(shapes[:i]):
                near = a == b or self.model.parents[a] == b or self.model.parents[b] == a
                if not near and frozenset((first, second)) not in ignored:
                    geometry.addCollisionPair(pin.CollisionPair(j, i))
                    pairs.append((second, first))
        return geometry, pairs

    def _levers(self) -> np.ndarray:
        """Longest arm of each joint: from its axis to the furthest shape it carries, whatever the posture."""
        levers = np.zeros(self.model.nq)
        for shape in self.geometry.geometryObjects:
            capsule = shape.geometry
            out = np.linalg.norm(shape.placement.translation) + capsule.radius + capsule.halfLength
            joint = shape.parentJoint
            while joint:
                levers[joint - 1] = max(levers[joint - 1], out)
                out += np.linalg.norm(self.model.jointPlacements[joint].translation)
                joint = self.model.parents[joint]
        return levers[self.inverse]

    def pose(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position [3] (m) and rotation [3, 3] of the TCP."""
        pin.framesForwardKinematics(self.model, self.data, joints[self.order])
        pose = self.data.oMf[self.tool]
        return pose.translation.copy(), pose.rotation.copy()

    def jacobian(self, joints: np.ndarray) -> np.ndarray:
        """[6, n]: TCP velocity (m/s) and angular velocity (rad/s) in base axes per joint velocity."""
        world = pin.ReferenceFrame.LOCAL_WORLD_ALIGNED
        q = joints[self.order]
        return pin.computeFrameJacobian(self.model, self.data, q, self.tool, world)[:, self.inverse]

    def motion(self, joints: np.ndarray, velocity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions [k, 3] (m) and velocities [k, 3] (m/s) of the TCP in k states [k, n], both in the base frame."""
        where, speed = np.empty((len(joints), 3)), np.empty((len(joints), 3))
        world = pin.ReferenceFrame.LOCAL_WORLD_ALIGNED
        for k, (q, v) in enumerate(zip(joints[:, self.order], velocity[:, self.order], strict=True)):
            pin.forwardKinematics(self.model, self.data, q, v)
            where[k] = pin.updateFramePlacement(self.model, self.data, self.tool).translation
            speed[k] = pin.getFrameVelocity(self.model, self.data, self.tool, world).linear
        return where, speed

    def clearance(self, joints: np.ndarray) -> tuple[float, tuple[str, str]]:
        """Smallest distance (m) between links that may not touch, and which two; infinite without shapes."""
        if not self.pairs:
            return float("inf"), ("", "")
        pin.computeDistances(self.model, self.data, self.geometry, self.geometry_data, joints[self.order])
        distances = [result.min_distance for result in self.geometry_data.distanceResults]
        nearest_pair = min(range(len(distances)), key=distances.__getitem__)
        return distances[nearest_pair], self.pairs[nearest_pair]


def _capsule(capsule: Capsule, frame: pin.Frame, index: int) -> pin.GeometryObject:
    """The capsule, placed on the joint that carries ``frame``."""
    import coal  # pyright: ignore[reportMissingImports]

    start, end = np.array(capsule.start), np.array(capsule.end)
    axis = end - start
    length = float(np.linalg.norm(axis))
    rotation = (
        pin.Quaternion.FromTwoVectors(np.array([0.0, 0, 1]), axis / length).matrix() if length else np.eye(3)
    )
    placement = frame.placement * pin.SE3(rotation, (start + end) / 2)
    shape = coal.Capsule(capsule.radius, length)
    return pin.GeometryObject(f"{capsule.frame}_{index}", frame.parentJoint, placement, shape)
