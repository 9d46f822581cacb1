"""A robot is one YAML contract (``configs/robot/*.yaml``), used for recording, training and serving alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_rl.config import CONFIGS, nearest
from vla_rl.errors import UserError

COMMANDS = ("joint_trajectory", "position")
GRIPPERS = ("topic", "action", "parallel_action")
MODES = ("ee", "ee_pose", "joint")


@dataclass
class Limits:
    """What no command exceeds; [n] each, in radians (metres for a prismatic joint) and seconds.

    Attributes:
        lower: lowest joint positions.
        upper: highest joint positions.
        velocity: highest joint speeds.
        acceleration: highest joint accelerations, of a stop too.
        jerk: highest change of acceleration per second.
        step: furthest a target may lie from where the arm is commanded to be.
        tracking: furthest the measured arm may lag the commanded one before it is stopped.
    """

    lower: list[float]
    upper: list[float]
    velocity: list[float]
    acceleration: list[float]
    jerk: list[float]
    step: float = 0.5
    tracking: float = 0.15


@dataclass
class Tool:
    """The tool centre point (TCP).

    Attributes:
        frame: its frame in the URDF.
        max_speed: metres per second.
        low: [3] corner of the workspace in the base frame, metres.
        high: [3] the opposite corner.
    """

    frame: str
    max_speed: float
    low: list[float]
    high: list[float]


@dataclass
class Capsule:
    """A link's shape: all within ``radius`` of the segment ``start``-``end`` (metres, the frame's coordinates)."""

    frame: str
    start: list[float]
    end: list[float]
    radius: float


@dataclass
class Collision:
    """Self-collision: every two capsules that are not of neighbouring links stay ``margin`` metres apart."""

    margin: float = 0.01
    capsules: list[Capsule] = field(default_factory=list)
    ignore: list[list[str]] = field(default_factory=list)


@dataclass
class Stream:
    """A topic that is read.

    Attributes:
        topic: its name.
        max_age: seconds after its stamp at which a message is stale.
    """

    topic: str
    max_age: float = 0.1


@dataclass
class Camera(Stream):
    """A ``sensor_msgs/CompressedImage`` (``kind: compressed``) or ``Image`` (``kind: raw``) stream, resized."""

    max_age: float = 0.3
    kind: str = "compressed"
    height: int = 96
    width: int = 96


@dataclass
class Scene:
    """What puts the scene to its start; without it a person does.

    Attributes:
        service: std_srvs/Trigger; empty = by hand.
        node: whose integer parameter ``seed`` chooses the start; empty = none.
    """

    service: str = ""
    node: str = ""


@dataclass
class Command:
    """Where joint commands go, and how often.

    Attributes:
        kind: ``joint_trajectory`` (trajectory_msgs/JointTrajectory: each message ends at rest, so that an arm whose
            commander dies brakes within its limits) or ``position`` (std_msgs/Float64MultiArray).
        topic: of the controller.
        rate_hz: of the command stream.
        timeout: seconds without a new target after which the arm brakes and holds.
    """

    kind: str
    topic: str
    rate_hz: float = 100.0
    timeout: float = 0.15


@dataclass
class Gripper:
    """Finger position commands.

    Attributes:
        topic: of the controller; the action's name where it is driven by one.
        joint: its name in ``joint_states``.
        shut: position when shut.
        open: position when open.
        kind: ``topic`` (std_msgs/Float64MultiArray), ``action`` (control_msgs/action/GripperCommand) or
            ``parallel_action`` (control_msgs/action/ParallelGripperCommand).
        effort: highest effort of an action's goal (N or Nm); 0 = the driver's own.
        tolerance: share of the stroke by which a target must have changed for a new goal of an action.
    """

    topic: str
    joint: str
    shut: float
    open: float
    kind: str = "topic"
    effort: float = 0.0
    tolerance: float = 0.05


@dataclass
class Control:
    """What an action means.

    Attributes:
        mode: ``ee``: TCP translation; ``ee_pose``: with a rotation vector; ``joint``: joint steps.
        rate_hz: decisions per second.
        translation: metres of an action of 1.
        rotation: radians of an action of 1 (rotation vector, and joints under ``joint``).
    """

    mode: str = "ee"
    rate_hz: float = 20.0
    translation: float = 0.05
    rotation: float = 0.2


@dataclass
class RobotContract:
    """One robot.

    Attributes:
        name: for messages and data sets.
        urdf: path of its URDF, relative to the repository or to an installed package (``mani_skill/assets/...``).
        joints: [n] names, in the order of every vector of this contract.
        home: [n] joint positions to begin episodes from.
        limits: of the joints.
        tool: TCP, its speed and workspace.
        collision: self-collision shapes.
        joint_states: sensor_msgs/JointState, joints in any order.
        command: the arm's command stream.
        gripper: None = an arm without.
        cameras: name -> stream.
        objects: name -> tracked object (geometry_msgs/PoseStamped, base frame), for ``observation.environment_state``.
        success: std_msgs/Bool that says the task is done; None = a person or a critic says so.
        scene: what resets it.
        control: what an action means.
        tasks: sentences the policy may be given.
    """

    name: str
    urdf: str
    joints: list[str]
    home: list[float]
    limits: Limits
    tool: Tool
    joint_states: Stream
    command: Command
    collision: Collision = field(default_factory=Collision)
    gripper: Gripper | None = None
    cameras: dict[str, Camera] = field(default_factory=dict)
    objects: dict[str, Stream] = field(default_factory=dict)
    success: Stream | None = None
    scene: Scene = field(default_factory=Scene)
    control: Control = field(default_factory=Control)
    tasks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        _check(self)


def load_contract(robot: str) -> RobotContract:
    """The contract ``configs/robot/<robot>.yaml``, or of a YAML file anywhere.

    Raises:
        UserError: no such robot, an unknown or missing key, or values that make no sense, each named.
    """
    from omegaconf import OmegaConf

    path = Path(robot).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        path = CONFIGS / "robot" / f"{robot}.yaml"
    if not path.is_file():
        have = [p.stem for p in (CONFIGS / "robot").glob("*.yaml")]
        raise UserError(f"unknown robot '{robot}': {nearest(robot, have)}")
    try:
        values = OmegaConf.load(path)
    except Exception as error:
        raise UserError(f"{path} is no YAML: {str(error).splitlines()[0]}") from error
    return contract_of(values, str(path))


def contract_of(values: Any, source: str = "robot") -> RobotContract:
    """A checked contract from a mapping; errors begin with ``source``."""
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

    try:
        merged = OmegaConf.merge(OmegaConf.structured(RobotContract), values)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise UserError(f"{source}: {missing[0]} is missing")
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except ConfigKeyError as error:
        known = list(getattr(error.object_type, "__dataclass_fields__", {}))
        raise UserError(
            f"{source}: unknown key '{error.full_key}': {nearest(str(error.key), known)}"
        ) from error
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if getattr(error, "full_key", None) else ""
        raise UserError(f"{source}: {where}{str(error).splitlines()[0]}") from error
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(source) else f"{source}: {text}") from error


def _check(robot: RobotContract) -> None:
    count, limits, tool = len(robot.joints), robot.limits, robot.tool
    if not count:
        raise UserError("joints is empty: name the arm's joints")
    twice = [j for j in robot.joints if robot.joints.count(j) > 1]
    if twice:
        raise UserError(f"joints names {twice[0]} twice")
    vectors = {
        f"limits.{k}": getattr(limits, k) for k in ("lower", "upper", "velocity", "acceleration", "jerk")
    }
    for key, values in {"home": robot.home, **vectors}.items():
        if len(values) != count:
            raise UserError(f"{key} has {len(values)} numbers for {count} joints ({', '.join(robot.joints)})")
    for i, joint in enumerate(robot.joints):
        low, high = limits.lower[i], limits.upper[i]
        if not low < high:
            raise UserError(f"limits of {joint} are inverted: lower {low} is not below upper {high}")
        if not low <= robot.home[i] <= high:
            raise UserError(f"home of {joint}, {robot.home[i]}, is outside its limits {low} ... {high}")
        for key in ("velocity", "acceleration", "jerk"):
            _positive(f"limits.{key} of {joint}", getattr(limits, key)[i])
    for key, size in (("low", tool.low), ("high", tool.high)):
        if len(size) != 3:
            raise UserError(f"tool.{key} has {len(size)} numbers, needs x, y, z in metres")
    for axis, low, high in zip("xyz", tool.low, tool.high, strict=True):
        if not low < high:
            raise UserError(f"the workspace is inverted along {axis}: tool.low {low}, tool.high {high}")
    for capsule in robot.collision.capsules:
        if len(capsule.start) != 3 or len(capsule.end) != 3:
            raise UserError(f"collision capsule of {capsule.frame}: start and end need x, y, z in metres")
        _positive(f"collision capsule of {capsule.frame}: radius", capsule.radius)
    for key, value in {
        "limits.step": limits.step,
        "limits.tracking": limits.tracking,
        "tool.max_speed": tool.max_speed,
        "command.rate_hz": robot.command.rate_hz,
        "command.timeout": robot.command.timeout,
        "control.rate_hz": robot.control.rate_hz,
        "control.translation": robot.control.translation,
        "control.rotation": robot.control.rotation,
        "joint_states.max_age": robot.joint_states.max_age,
        **{f"cameras.{name}.max_age": camera.max_age for name, camera in robot.cameras.items()},
        **{f"objects.{name}.max_age": stream.max_age for name, stream in robot.objects.items()},
    }.items():
        _positive(key, value)
    _one_of("command.kind", robot.command.kind, COMMANDS)
    _one_of("control.mode", robot.control.mode, MODES)
    for name, camera in robot.cameras.items():
        _one_of(f"cameras.{name}.kind", camera.kind, ("compressed", "raw"))
    if robot.command.rate_hz < robot.control.rate_hz:
        raise UserError(
            f"command.rate_hz={robot.command.rate_hz} is below control.rate_hz={robot.control.rate_hz}: "
            "commands are interpolated between decisions, at 100 Hz or more"
        )
    gripper = robot.gripper
    if gripper is not None:
        _one_of("gripper.kind", gripper.kind, GRIPPERS)
        if gripper.open == gripper.shut:
            raise UserError("gripper.open and gripper.shut are the same position")
        if not (math.isfinite(gripper.effort) and gripper.effort >= 0):
            raise UserError(f"gripper.effort is {gripper.effort}, needs 0 or more")
        if not 0 < gripper.tolerance < 1:
            raise UserError(
                f"gripper.tolerance={gripper.tolerance} is a share of the stroke, between 0 and 1"
            )


def _positive(key: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{key} is {value}, needs a number above 0")


def _one_of(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"{key}={value}: {nearest(value, choices)}")
