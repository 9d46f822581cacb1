"""The arm in a browser's 3D scene: the URDF's meshes where they are there, else the contract's safety capsules, else a skeleton."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pinocchio as pin  # pyright: ignore[reportMissingImports]

from real.contract import RobotContract
from real.kinematics import urdf_path

MESHES = (".glb", ".stl", ".obj")
GREY, ORANGE, BLUE = (188, 194, 204), (224, 122, 40), (70, 130, 220)
THIN = 0.015
"""metres: radius of a link of which nothing but its joints is known."""

STILL = 2e-4
"""rad (or metres): an arm that has moved less is not drawn again."""


@dataclass
class Visual:
    """A mesh of a link: ``placement`` of the file in the link's frame, ``scale`` per axis."""

    link: str
    placement: Any
    file: Path
    scale: tuple[float, float, float]


def visuals(urdf: Path) -> list[Visual]:
    """The visual meshes of a URDF whose files are there, looked for beside it."""
    found = []
    for link in ElementTree.parse(urdf).getroot().iter("link"):
        for visual in link.iter("visual"):
            mesh = visual.find("geometry/mesh")
            if mesh is None:
                continue
            file = urdf.parent / mesh.get("filename", "").removeprefix("package://")
            if not file.is_file() or file.suffix.lower() not in MESHES:
                continue
            origin = visual.find("origin")
            xyz, rpy = (
                np.array([float(v) for v in (origin.get(key) or "0 0 0").split()])
                if origin is not None
                else np.zeros(3)
                for key in ("xyz", "rpy")
            )
            scale = [float(v) for v in (mesh.get("scale") or "1 1 1").split()]
            placement = pin.SE3(pin.rpy.rpyToMatrix(rpy), xyz)
            found.append(Visual(link.get("name", ""), placement, file, (scale[0], scale[1], scale[2])))
    return found


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """[4] w, x, y, z of a rotation [3, 3]."""
    x, y, z, w = pin.Quaternion(rotation).coeffs()
    return np.array([w, x, y, z])


class ArmScene:
    """Draws the arm, its workspace and the tracked objects; for one thread.

    Args:
        server: viser's.
        contract: the robot.
    """

    def __init__(self, server: Any, contract: RobotContract) -> None:
        self.server, self.contract = server, contract
        path = urdf_path(contract.urdf)
        self.model = pin.buildModelFromUrdf(str(path))
        self.data = self.model.createData()
        self.tool = self.model.getFrameId(contract.tool.frame)
        self.joints = pin.neutral(self.model)
        self._drawn: np.ndarray | None = None
        self.mimics = {
            joint.get("name", ""): (mimic.get("joint", ""), float(mimic.get("multiplier", 1)))
            for joint in ElementTree.parse(path).getroot().iter("joint")
            if (mimic := joint.find("mimic")) is not None
        }
        server.scene.set_up_direction("+z")
        server.scene.configure_default_lights(cast_shadow=False)
        self.parts: list[tuple[int, Any, Any]] = []
        """Frame, placement in it, node of the scene."""
        self.objects: dict[str, Any] = {}
        meshes = [v for v in visuals(path) if self.model.existFrame(v.link)]
        for number, visual in enumerate(meshes):
            self._add_mesh(f"/arm/{number}_{visual.link}", visual)
        if not meshes:
            self._add_capsules()
        self._add_surroundings()
        self.update(dict(zip(contract.joints, contract.home, strict=True)))

    def _add_mesh(self, name: str, visual: Visual) -> None:
        scene, frame = self.server.scene, self.model.getFrameId(visual.link)
        if visual.file.suffix.lower() == ".glb":
            node = scene.add_glb(name, glb_data=visual.file.read_bytes(), scale=visual.scale)
        else:
            import trimesh

            mesh: Any = trimesh.load(visual.file, force="mesh")
            vertices = np.asarray(mesh.vertices) * visual.scale
            node = scene.add_mesh_simple(name, vertices, np.asarray(mesh.faces), color=GREY)
        self.parts.append((frame, visual.placement, node))

    def _shapes(self) -> list[tuple[int, np.ndarray, np.ndarray, float]]:
        """Frame, start, end and radius of the contract's capsules; without any, of lines from joint to joint."""
        model = self.model
        shapes = [
            (model.getFrameId(c.frame), np.array(c.start), np.array(c.end), c.radius)
            for c in self.contract.collision.capsules
        ]
        if shapes:
            return shapes
        carried = [(model.parents[j], model.jointPlacements[j]) for j in range(1, model.njoints)]
        tool = model.frames[self.tool]
        return [
            (model.getFrameId(model.names[joint]), np.zeros(3), placement.translation, THIN)
            for joint, placement in [*carried, (tool.parentJoint, tool.placement)]
        ]

    def _add_capsules(self) -> None:
        import trimesh

        for number, (frame, start, end, radius) in enumerate(self._shapes()):
            length = float(np.linalg.norm(end - start))
            shape = trimesh.creation.capsule(height=length, radius=radius, count=[16, 16])
            along = (end - start) / length if length else np.array([0.0, 0, 1])
            rotation = pin.Quaternion.FromTwoVectors(np.array([0.0, 0, 1]), along).matrix()
            # Whichever end trimesh counts from: the middle is the same.
            points = (shape.vertices - shape.bounds.mean(0)) @ rotation.T + (start + end) / 2
            color = GREY if number % 2 else ORANGE
            node = self.server.scene.add_mesh_simple(
                f"/arm/{number}", points, np.asarray(shape.faces), color=color
            )
            self.parts.append((frame, pin.SE3.Identity(), node))

    def _add_surroundings(self) -> None:
        scene, tool = self.server.scene, self.contract.tool
        low, high = np.array(tool.low), np.array(tool.high)
        middle = (low + high) / 2
        corners = np.array([[(low, high)[(i >> axis) & 1][axis] for axis in range(3)] for i in range(8)])
        edges = [(i, i | 1 << axis) for i in range(8) for axis in range(3) if not i >> axis & 1]
        scene.add_line_segments("/workspace", corners[np.array(edges)], colors=BLUE, line_width=1.5)
        floor = min(0.0, float(low[2]))
        scene.add_grid(
            "/floor",
            width=2.0,
            height=2.0,
            cell_size=0.1,
            section_size=0.5,
            cell_color=(52, 56, 62),
            section_color=(84, 90, 98),
            position=(0.4, 0.0, floor),
        )
        self.tcp = scene.add_frame("/tcp", axes_length=0.06, axes_radius=0.003)
        reach = float(np.linalg.norm(high - np.minimum(low, 0.0)))
        camera = self.server.initial_camera
        camera.position = (middle[0] + 0.75 * reach, middle[1] + 0.75 * reach, middle[2] + 0.6 * reach)
        camera.look_at = (0.7 * middle[0], middle[1], middle[2])

    def update(self, positions: dict[str, float]) -> None:
        """Draw the arm with joints at ``positions`` (by name; unknown names are left out)."""
        joints = self.joints.copy()
        for name, value in positions.items():
            self._set(joints, name, value)
        for name, (leader, factor) in self.mimics.items():
            if leader in positions and name not in positions:
                self._set(joints, name, factor * positions[leader])
        if self._drawn is not None and np.abs(joints - self._drawn).max() < STILL:
            return
        self.joints = self._drawn = joints
        pin.framesForwardKinematics(self.model, self.data, joints)
        with self.server.atomic():
            for frame, placement, node in self.parts:
                pose = self.data.oMf[frame] * placement
                node.position, node.wxyz = pose.translation, quaternion(pose.rotation)
            self.tcp.position, rotation = self.tool_pose()
            self.tcp.wxyz = quaternion(rotation)

    def _set(self, joints: np.ndarray, name: str, value: float) -> None:
        if self.model.existJointName(name):
            joint = self.model.joints[self.model.getJointId(name)]
            if joint.nq == 1 and np.isfinite(value):
                joints[joint.idx_q] = value

    def tool_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Position [3] and rotation [3, 3] of the TCP as drawn."""
        pose = self.data.oMf[self.tool]
        return pose.translation.copy(), pose.rotation.copy()

    def place(self, name: str, position: np.ndarray) -> None:
        """Draw a tracked object at ``position`` [3]."""
        if name not in self.objects:
            self.objects[name] = self.server.scene.add_icosphere(
                f"/objects/{name}", radius=0.018, color=(210, 60, 60)
            )
            self.server.scene.add_label(f"/objects/{name}/label", name, position=(0.0, 0.0, 0.06))
        self.objects[name].position = position
