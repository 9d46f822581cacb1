"""A robot as an environment: a batch of one, on a clock, over ROS 2.

The same contract (``vla_rl.environment.VlaVectorEnv``) that simulators keep, so that evaluation, recording and
training run unchanged. Targets go to ``real.safety_node``, never to the arm itself.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from real.contract import load_contract
from real.embodiment import Commander, chosen_cameras, robot_spec, state_vector
from real.kinematics import ArmModel
from real.motion import go, joints_of, retrace
from real.ros2 import Latest, Link, Ticker, picture_type
from real.safety_node import RESET, STATE, STOP_BUTTON, TARGET, describe, read_joints
from real.stops import AGAIN, NOT_STARTED, await_reset, latched, verdict
from vla_rl.environment import (
    Observation,
    StartState,
    VlaVectorEnv,
    checked_action,
    row_mask,
    row_seeds,
    row_starts,
)
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, TASK, image_key
from vla_rl.keys import STATE as PROPRIOCEPTION

PATIENCE = 5.0
"""Seconds a stale stream may take to come back before the episode is given up; the arm holds meanwhile."""

GUARD = 1.0
"""Seconds that the safety node, which speaks ten times a second, may be silent."""

GRASP = 0.5
"""Seconds that shutting the gripper at a saved posture takes."""


class RobotFault(UserError):
    """The robot cannot go on: stopped by safety, or a stream is gone. The arm holds."""


class RobotEnv(VlaVectorEnv):
    """One robot (see ``VlaVectorEnv``); time passes whether it is stepped or not.

    ``observation.state``: see ``real.embodiment.state_vector``. ``observation.environment_state``: positions of the
    contract's tracked objects, metres. An episode is a function of its seed only as far as the scene's reset is.
    It begins from saved states as far as a person can: the arm goes to the posture, the person arranges the scene.

    Args:
        robot: contract: a name of ``configs/robot`` or a YAML file.
        cameras: names of the contract's to use; None = all. A stale one holds the arm.
        max_episode_steps: time limit in control steps.
        task: the sentence; None = the contract's first.
        confirm: asked to put the scene in order when the contract names no service for it.
        stop_patience: seconds in which a person may reset a latched stop. The episode it ended has failed (cut, not failed,
            if a person pressed the button), and the next one begins after the reset. 0 = a stop ends the run.
        arguments: of the node, as on a ROS command line.

    Raises:
        UserError: a stream that gives nothing, a joint that is missing, no safety node.
    """

    def __init__(
        self,
        robot: str,
        *,
        cameras: Sequence[str] | None = None,
        max_episode_steps: int = 150,
        task: str | None = None,
        confirm: Callable[[str], Any] = input,
        stop_patience: float = 0.0,
        arguments: Sequence[str] = (),
    ) -> None:
        self.closed = True  # until it is complete: gymnasium's destructor asks
        self.contract = contract = load_contract(robot)
        spec = robot_spec(contract, cameras, task, max_episode_steps)
        self.task, self.confirm, self.stop_patience = spec.tasks[0], confirm, stop_patience
        self.model = ArmModel(contract)
        self.commander = Commander(contract, self.model)
        self.cameras = chosen_cameras(contract, cameras)
        self.set_spaces(spec, 1)
        self.link = Link("vla_rl_robot", arguments)
        try:
            self._connect()
        except BaseException:
            self.link.close()
            raise
        self.ticker = Ticker(self.link, 1 / contract.control.rate_hz)
        self.lateness: deque[float] = deque(maxlen=10_000)
        """Seconds by which control steps were late."""
        self.outcome: Callable[[], str] | None = None
        """What a person has said since the last step: ``success``, ``failure``, ``discard``, ``rewind`` or nothing; set by a
        device."""
        self.rewind_seconds = 2.0
        """How far a rewind goes back."""
        self._path: list[np.ndarray] = []  # postures before each step of the episode
        self._grip = float("nan")  # what the gripper was last told
        self.stops: list[str] = []
        self.stopped = ""
        """Why the arm is stopped, from when this was seen until a person has reset it."""
        self.results: list[bool] = []
        """Success of each finished episode that nobody threw away."""
        self.seed: int | None = None
        """Of the episode."""
        self.closed, self._done, self.steps = False, True, 0

    def _connect(self) -> None:
        from diagnostic_msgs.msg import DiagnosticStatus
        from geometry_msgs.msg import PoseStamped
        from sensor_msgs.msg import JointState
        from std_msgs.msg import Bool
        from trajectory_msgs.msg import JointTrajectory

        contract, link = self.contract, self.link
        self.joints = link.listen(contract.joint_states.topic, JointState)
        self.pictures = {
            n: link.listen(contract.cameras[n].topic, picture_type(contract.cameras[n])) for n in self.cameras
        }
        self.objects = {n: link.listen(s.topic, PoseStamped) for n, s in contract.objects.items()}
        self.success = link.listen(contract.success.topic, Bool) if contract.success else None
        self.safety = link.listen(STATE, DiagnosticStatus)
        self.stopper = link.publisher(STOP_BUTTON, Bool)
        link.alone(TARGET)
        self.target = link.publisher(TARGET, JointTrajectory)
        success = [self.success] if self.success else []
        link.require([self.joints, *self.pictures.values(), *self.objects.values(), *success], 10.0)
        if not self.safety.wait(0, 10.0):
            raise UserError(f"no safety node: start it with python -m real.safety_node {contract.name}")
        gripper = [contract.gripper.joint] if contract.gripper else []
        read_joints(self._message(self.joints), [*contract.joints, *gripper])
        # name, stream, seconds after which it is stale
        self.limits: list[tuple[str, Latest, float]] = [
            ("joint states", self.joints, contract.joint_states.max_age)
        ]
        self.limits += [(f"camera {n}", s, contract.cameras[n].max_age) for n, s in self.pictures.items()]
        self.limits += [(f"object {n}", s, contract.objects[n].max_age) for n, s in self.objects.items()]

    # ---- the environment contract -----------------------------------------------------------------------

    start_states = True

    def reset(self, *, seed: Any = None, options: dict | None = None) -> tuple[Observation, dict]:  # type: ignore[override]
        """Move home, put the scene in order, begin. A latched stop is not cleared here, but named and waited out.

        Raises:
            RobotFault: stopped by safety, or home cannot be reached.
        """
        if not row_mask(options, 1)[0]:
            return self._observation, {}
        start = row_starts(options, self).get(0)
        self.seed = row_seeds(seed, 1)[0] if start is None else int(start["seed"])
        self._path, self._grip = [], self.contract.gripper.open if self.contract.gripper else float("nan")
        for attempt in range(AGAIN):
            self._ready()
            try:
                self._prepare(start)
                break
            except RobotFault:
                if not (self.stop_patience and latched(self)) or attempt == AGAIN - 1:
                    raise
                self.stops.append(latched(self))
        self._await_fresh(after=self.link.now())
        where = read_joints(self._message(self.joints), self.contract.joints)
        self.commander.reset(where)
        if self.outcome is not None:
            self.outcome()  # said before it began
        self.steps, self._done, self._pictures = 0, False, None
        self._observation = self._observe()
        self.ticker = Ticker(self.link, self.ticker.period)
        return self._observation, {}

    def step(self, action: Any) -> tuple[Observation, Tensor, Tensor, Tensor, dict]:  # type: ignore[override]
        """Send the action's target, wait for the next control tick, observe.

        ``info["held"]`` [1]: a stale stream made the arm hold during this step. ``info["discarded"]`` [1]: a person has
        thrown the episode away. ``info["rewound"]`` [1]: a person has asked for a rewind: the arm is back where it was so
        many steps ago (this one included), the observation is from there, and those steps no longer count.

        A latched stop ends the episode where ``stop_patience`` allows: see ``real.stops``.

        Raises:
            RobotFault: stopped by safety, or a stream stays stale.
        """
        values = checked_action(action, self.env_spec, 1)[0].numpy()
        if self._done:
            raise RuntimeError("the episode has finished: reset before step")
        where = read_joints(self._message(self.joints), self.contract.joints)
        target, grip = self.commander.command(values, where)
        self._path.append(where)
        self._grip = self._grip if grip is None else grip
        self._send(target, grip, label=f"seed {self.seed} step {self.steps}")
        self.lateness.append(self.ticker.wait())
        stopped = self._guarded()
        held = not stopped and self._await_fresh()
        self.steps += 1
        said = self.outcome() if self.outcome is not None else ""
        if stopped:
            self.stops.append(stopped)
            said = verdict(stopped, said)
            print(f"the arm is stopped: {stopped}. This episode is over ({said})", flush=True)
        rewound = self._rewind() if said == "rewind" and not self._succeeded() else 0
        self.steps -= rewound
        success = said not in ("failure", "discard", "cut") and (said == "success" or self._succeeded())
        terminated = success or said == "failure"
        late = self.steps >= self.env_spec.max_episode_steps
        truncated = (late or said in ("discard", "cut")) and not terminated
        self._done = terminated or truncated
        if self._done and said != "discard":
            self.results.append(success)
        self._observation = self._observe()
        self._pictures = self._pictures_now() if self._done else None
        done = torch.tensor([success])
        discarded = torch.tensor([said == "discard"])
        info = {"success": done, "held": torch.tensor([held]), "discarded": discarded}
        info["rewound"] = torch.tensor([rewound])
        flags = torch.tensor([terminated]), torch.tensor([truncated])
        return self._observation, done.float(), flags[0], flags[1], info

    def look(self, rows: Any = None) -> dict[str, Tensor]:
        """The newest pictures; those of the last step once the episode has finished."""
        count = 1 if rows is None else len(rows)
        if count == 0:
            return {}
        kept = getattr(self, "_pictures", None)
        return kept if kept is not None else self._pictures_now()

    def save_states(self, rows: Sequence[int]) -> list[StartState | None]:
        """Posture, gripper, seed, tracked objects and pictures: what a guided reset needs."""
        points = [self._message(s).pose.position for s in self.objects.values()]
        state: StartState = {
            "joints": joints_of(self),
            "gripper": np.array(self._grip),
            "seed": np.array(-1 if self.seed is None else self.seed),
            "objects": np.array([[p.x, p.y, p.z] for p in points]).reshape(-1, 3),
        }
        pictures = {key: value[0].numpy() for key, value in self._pictures_now().items()}
        return [state | pictures for _ in rows]

    def close(self, **_: Any) -> None:
        """Leave the network; the arm holds. Safe to call twice."""
        if not self.closed:
            self.closed = True
            self.hold()
            self.link.close()

    # ---- what it does -----------------------------------------------------------------------------------

    def hold(self) -> None:
        """Ask the arm to brake and hold now."""
        from std_msgs.msg import Header
        from trajectory_msgs.msg import JointTrajectory

        self.target.publish(JointTrajectory(header=Header(stamp=self.link.stamp())))

    def stop(self) -> None:
        """Latch the safety node's stop; only its reset service ends it."""
        from std_msgs.msg import Bool

        self.stopper.publish(Bool(data=True))

    def _send(self, joints: np.ndarray, gripper: float | None, label: str = "home") -> None:
        """``label`` goes into ``frame_id``, so that a log tells which step each target belongs to."""
        from std_msgs.msg import Header
        from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

        names, positions = list(self.contract.joints), joints.tolist()
        if gripper is not None and self.contract.gripper is not None:
            names, positions = [*names, self.contract.gripper.joint], [*positions, float(gripper)]
        self.target.publish(
            JointTrajectory(
                header=Header(stamp=self.link.stamp(), frame_id=label),
                joint_names=names,
                points=[JointTrajectoryPoint(positions=positions)],
            )
        )

    def _ready(self) -> None:
        """Start a safety node that has not been started yet; refuse a stopped one, and a second commander.

        A node that was started anew while the arm was stopped is not started from here: a person resets it.
        """
        rival = self.link.rival(TARGET, own=1)
        if rival:
            raise RobotFault(f"{rival} publishes {TARGET} too: two commanders, stop one of them")
        mode, reason = describe(self.safety)
        if mode == "stopped" and reason == NOT_STARTED and not self.stopped:
            self.link.pull(RESET)
            count = self.safety.count
            self.safety.wait(count, 1.0)
            mode, reason = describe(self.safety)
        await_reset(self, self.stop_patience)

    def _unguarded(self) -> float:
        """Seconds since the safety node's last word."""
        newest = self.safety.newest
        return self.link.now() - newest.arrival if newest is not None else float("inf")

    def _guarded(self) -> str:
        """The safety node is there and has not stopped the arm; why it has, if that only costs the episode."""
        silent = self._unguarded()
        if silent > GUARD:
            raise RobotFault(
                f"the safety node has said nothing for {silent:.1f} s: the arm is at rest; start the node again"
            )
        reason = latched(self)
        if reason:
            self.stopped = reason
            if not self.stop_patience:
                raise RobotFault(f"the arm is stopped: {reason}")
        return reason

    def _prepare(self, start: StartState | None) -> None:
        if start is None:
            self._home()
            self._scene(self.seed)
        else:
            self._return(start)

    def _home(self) -> None:
        """Straight home in joint space, fingers open."""
        gripper = self.contract.gripper
        go(self, np.array(self.contract.home), gripper.open if gripper else None, "home")

    def _return(self, start: StartState) -> None:
        """To a saved posture, and the person is told how the scene has to look there: a guided reset.

        From home, fingers open; they take up again what they did then once the person has confirmed.
        """
        gripper, posture = self.contract.gripper, np.asarray(start["joints"], np.float64)
        self._home()
        if self.contract.scene.service and start["seed"] >= 0:
            self._scene(int(start["seed"]))
        go(self, posture, gripper.open if gripper else None, "to the saved posture")
        shown = start.get("picture")
        words = f"as in {shown}" if shown else "as it was then"
        places = [f"{n} at ({p[0]:.3f}, {p[1]:.3f}, {p[2]:.3f}) m" for n, p in zip(self.objects, start["objects"])]  # fmt: skip  # noqa: B905
        words += f" ({', '.join(places)})" if places else ""
        self._ask(f"arrange the scene {words} for '{self.task}', then press Enter ")
        self._ready()
        grip = float(start["gripper"])
        if gripper is not None and np.isfinite(grip) and grip != gripper.open:
            for _ in range(round(GRASP / self.ticker.period)):
                self._send(posture, grip, label="grasp")
                time.sleep(self.ticker.period)
            self._grip = grip

    def _ask(self, words: str) -> None:
        try:
            self.confirm(words)
        except EOFError as error:
            raise RobotFault(f"nobody is there to be asked to {words}: run it in a terminal") from error

    def _rewind(self) -> int:
        """Back along the last ``rewind_seconds`` of this episode's own path; returns the number of steps undone."""
        count = min(len(self._path), max(1, round(self.rewind_seconds / self.ticker.period)))
        retrace(self, self._path[-count:])
        del self._path[-count:]
        self._await_fresh(after=self.link.now())
        self.commander.reset(joints_of(self))
        self.ticker = Ticker(self.link, self.ticker.period)
        return count

    def _scene(self, seed: int | None) -> None:
        scene = self.contract.scene
        if not scene.service:
            self._ask(f"put the scene in order for '{self.task}', then press Enter ")
            return
        if scene.node and seed is not None:
            self.link.set_parameter(scene.node, "seed", seed)
        self.link.pull(scene.service)
        time.sleep(0.1)  # done by the arm's own loop, a tick or two later

    def _await_fresh(self, after: float | None = None) -> bool:
        """Hold until every stream is fresh (and newer than ``after``); True when it had to wait.

        Raises:
            RobotFault: one stays stale for ``PATIENCE`` seconds.
        """
        stale = self._stale(after)
        if not stale:
            return False
        if after is None:
            self.hold()
        until = time.monotonic() + PATIENCE
        while stale:
            if time.monotonic() > until:
                raise RobotFault(f"{stale} for {PATIENCE:g} s; the arm holds")
            time.sleep(0.005)
            stale = self._stale(after)
        if after is None:
            # From where it stands, not from where it would have been.
            self.commander.reset(read_joints(self._message(self.joints), self.contract.joints))
        return True

    def _stale(self, after: float | None) -> str:
        for name, stream, limit in self.limits:
            age = stream.age()
            if not 0 <= age <= limit:
                return f"{name} ({stream.topic}) is {1e3 * age:.0f} ms old, allowed are {1e3 * limit:.0f}"
            if after is not None and stream.newest is not None and stream.newest.stamp < after:
                return f"{name} ({stream.topic}) has nothing new"
        return ""

    def _succeeded(self) -> bool:
        return self.success is not None and bool(self._message(self.success).data)

    @staticmethod
    def _message(stream: Latest) -> Any:
        assert stream.newest is not None  # link.require saw to it
        return stream.newest.message

    def _observe(self) -> Observation:
        contract, message = self.contract, self._message(self.joints)
        gripper = read_joints(message, [contract.gripper.joint])[0] if contract.gripper else None
        state = state_vector(self.model, read_joints(message, contract.joints), gripper)
        observation: Observation = {PROPRIOCEPTION: torch.from_numpy(state)[None], TASK: [self.task]}
        if self.objects:
            points = [self._message(s).pose.position for s in self.objects.values()]
            observation[ENV_STATE] = torch.tensor(
                [[v for p in points for v in (p.x, p.y, p.z)]], dtype=torch.float32
            )
        return observation

    def _pictures_now(self) -> dict[str, Tensor]:
        return {
            image_key(n): torch.from_numpy(picture_of(self._message(s), self.contract.cameras[n]))[None]
            for n, s in self.pictures.items()
        }


def picture_of(message: Any, camera: Any) -> np.ndarray:
    """A ``CompressedImage`` or ``Image`` as uint8 [3, H, W] RGB of the contract's size.

    Raises:
        UserError: an encoding that is none of ``rgb8``, ``bgr8``, ``mono8``, or a broken picture.
    """
    import cv2

    data = np.frombuffer(message.data, np.uint8)
    if camera.kind == "compressed":
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
        if picture is None:
            raise UserError(f"{camera.topic} carries a picture ({message.format}) that cannot be decoded")
    else:
        channels = {"rgb8": 3, "bgr8": 3, "mono8": 1}.get(message.encoding)
        if channels is None:
            raise UserError(f"{camera.topic} is encoded as {message.encoding}: publish rgb8, bgr8 or mono8")
        rows = data.reshape(message.height, message.step)[:, : message.width * channels]
        picture = rows.reshape(message.height, message.width, channels)
        picture = np.repeat(picture, 3, 2) if channels == 1 else picture
        picture = picture[..., ::-1] if message.encoding == "bgr8" else picture
    if picture.shape[:2] != (camera.height, camera.width):
        picture = cv2.resize(
            np.ascontiguousarray(picture), (camera.width, camera.height), interpolation=cv2.INTER_AREA
        )
    return np.ascontiguousarray(picture.transpose(2, 0, 1))
