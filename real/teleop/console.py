"""The browser as a teleoperator: take over, drag the handle or hold a button, say how the episode went."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from real.console import Console as View
from real.console_scene import quaternion
from real.console_streams import watch_env
from real.robot_env import RobotEnv
from real.teleop.console_drive import DrivePanel
from real.teleop.console_hold import TakeOver
from real.teleop.joy import gripper_now
from vla_rl.errors import UserError
from vla_rl.keys import STATE
from vla_rl.policies.base import Observation

HELD = 0.3
"""Seconds for which a held button counts after it was heard last (a browser repeats it ten times a second)."""

PULSE = 0.1
"""Seconds between two questions to the browser that has the arm."""

DAMPING = 1e-3
"""Of the inverse kinematics under ``control.mode: joint``."""


@dataclass
class Drag:
    """A handle being pulled: where it was grabbed and where it is; ``base`` is the arm's target at the first step."""

    start: tuple[np.ndarray, np.ndarray]
    now: tuple[np.ndarray, np.ndarray]
    base: tuple[np.ndarray, np.ndarray] | None = None


class Console:
    """A teleoperator (see ``vla_rl.policies.intervened.Teleoperator``) for one robot, and its console.

    The arm moves while the handle is pulled or a button is held, and rests else; motion is relative to where the tool is
    when one begins. A browser that goes away keeps the arm still, and the policy away, until somebody hands it back.

    Args:
        env: the robot.
        host: address to listen on; only this machine unless it is set.
        port: 0 = any that is free.
        token: None = ``$VLA_RL_CONSOLE_TOKEN``, or a new one, printed.
        speed: action of a held button, and fastest of a drag, 0 ... 1.
        reach: metres by which the handle may lead the tool.
        max_age: seconds after which a browser that does not answer has lost the arm.
        rewind_seconds: how far its rewind button takes the arm back.

    Raises:
        UserError: the address is taken, the token is short, a setting out of its range.
    """

    state_keys = (STATE,)

    def __init__(
        self,
        env: RobotEnv,
        host: str = "127.0.0.1",
        port: int = 8090,
        token: str | None = None,
        speed: float = 0.5,
        reach: float = 0.15,
        max_age: float = 1.0,
        rewind_seconds: float = 2.0,
    ) -> None:
        if not 0 < speed <= 1:
            raise UserError(f"teleop.speed={speed} must lie in (0, 1]")
        for key, value in {"reach": reach, "max_age": max_age, "rewind_seconds": rewind_seconds}.items():
            if value <= 0:
                raise UserError(f"teleop.{key}={value} needs a number above 0")
        self.env, self.speed, self.reach = env, speed, reach
        self.hold, self.grip = TakeOver(max_age), 1.0
        self._lock = threading.Lock()
        self._outcome, self._held = "", {}
        self._drag: Drag | None = None
        self._squeeze: float | None = None
        self._gizmo: tuple[int, Any] | None = None
        self._pulse, self._steps, self._taken, self._before = 0.0, 0, 0, len(env.results)
        self.shares: list[float] = []
        """Of the steps of each finished episode, those taken over."""
        self.view = View(watch_env(env), host, port, token)
        self.panel = DrivePanel(self)
        self.view.server.on_client_disconnect(lambda client: self.hold.gone(client.client_id))
        self.view.also.append(self._refresh)
        env.outcome, env.rewind_seconds = self.outcome, rewind_seconds

    # ---- the teleoperator, in the control loop ------------------------------------------------------------

    def initial_state(self, batch_size: int) -> TensorDict:
        """The device has no state of its own."""
        if batch_size != 1:
            raise UserError(f"a console steers one robot, not {batch_size}")
        return TensorDict({}, batch_size=[1])

    def outcome(self) -> str:
        """``success``, ``failure``, ``discard`` or ``rewind`` if its button was pressed since the last call, else ""."""
        with self._lock:
            outcome, self._outcome = self._outcome, ""
        if outcome == "discard":
            self._steps = self._taken = 0
        return outcome

    def command(self, observation: Observation, state: TensorDict) -> tuple[Tensor, Tensor, TensorDict]:
        """See ``Teleoperator``."""
        steering, taken, begun = self.hold.engaged()
        if begun:
            self.grip = gripper_now(self.env, observation)
        action = np.zeros(self.env.env_spec.action_dim, np.float32)
        if steering:
            try:
                moves = self._moves()
                action[: len(moves)] = moves
            except Exception:  # of the browser's making: it must not end the episode
                traceback.print_exc(file=sys.stderr)
                self.hold.lose()
                action[:] = 0.0
        if self.env.contract.gripper is not None:
            action[-1] = self.grip
        self._count(taken)
        return torch.from_numpy(action)[None], torch.tensor([taken]), state

    def _count(self, taken: bool) -> None:
        finished = len(self.env.results)
        if finished != self._before and self._steps:
            self.shares.append(self._taken / self._steps)
            self._steps = self._taken = 0
        self._before = finished
        self._steps, self._taken = self._steps + 1, self._taken + taken

    def _moves(self) -> np.ndarray:
        """Arm part of the action, in -speed ... speed."""
        gripper = self.env.contract.gripper is not None
        moves = np.zeros(self.env.env_spec.action_dim - gripper)
        now = time.monotonic()
        with self._lock:
            squeeze, self._squeeze = self._squeeze, None
            held = [key for key, heard in self._held.items() if now - heard < HELD]
            drag = self._drag
        self.grip = self.grip if squeeze is None else squeeze
        for index, sign in held:
            moves[index] += sign * self.speed
        if drag is not None and not held:
            moves = self._pulled(drag)
            moves *= min(1.0, self.speed / max(1e-9, np.abs(moves).max()))
        return moves

    def _pulled(self, drag: Drag) -> np.ndarray:
        """What is left of the way to where the handle has gone, in units of one action."""
        import pinocchio as pin  # pyright: ignore[reportMissingImports]

        control, target = self.env.contract.control, self.env.commander.target
        place, posture = self.env.model.pose(target)
        if drag.base is None:
            drag.base = place, posture
        way = drag.base[0] + drag.now[0] - drag.start[0] - place
        way *= min(1.0, self.reach / max(1e-9, float(np.linalg.norm(way))))
        if control.mode == "ee":
            return way / control.translation
        turn = pin.log3(drag.now[1] @ drag.start[1].T @ drag.base[1] @ posture.T)
        if control.mode == "ee_pose":
            return np.concatenate([way / control.translation, turn / control.rotation])
        jacobian = self.env.model.jacobian(target)
        damped = jacobian @ jacobian.T + DAMPING * np.eye(6)
        return jacobian.T @ np.linalg.solve(damped, np.concatenate([way, turn])) / control.rotation

    # ---- pressed in a browser -----------------------------------------------------------------------------

    def say(self, outcome: str) -> None:
        """How the episode went."""
        with self._lock:
            self._outcome = outcome

    def take(self, client: Any) -> bool:
        """A browser takes over; False = another one has the arm."""
        taken = self.hold.take(client.client_id)
        if taken:
            with self._lock:
                self._held, self._drag, self._squeeze = {}, None, None
            self._add_gizmo(client)
        return taken

    def hand_back(self, client: Any) -> bool:
        """A browser gives the arm to the policy; False = it is not its to give."""
        given = self.hold.hand_back(client.client_id)
        if given:
            with self._lock:
                self._held, self._drag = {}, None
        return given

    def press(self, client: int | None, index: int, sign: int) -> None:
        """A held button moves action ``index``."""
        if self.hold.state() == ("held", client):
            with self._lock:
                self._held[index, sign] = time.monotonic()

    def squeeze(self, client: int | None, value: float) -> None:
        """Open (1) or shut (-1) the gripper."""
        if self.hold.state() == ("held", client):
            with self._lock:
                self._squeeze = value

    def _add_gizmo(self, client: Any) -> None:
        self._remove_gizmo()
        position, rotation = self.view.scene.tool_pose()
        gizmo = client.scene.add_transform_controls(
            "/handle",
            scale=0.22,
            line_width=4.0,
            disable_rotations=self.env.contract.control.mode == "ee",
            depth_test=False,
            position=position,
            wxyz=quaternion(np.eye(3)),
        )

        @gizmo.on_update
        async def _(event: Any) -> None:  # asynchronous: in order
            import pinocchio as pin  # pyright: ignore[reportMissingImports]

            w, x, y, z = event.target.wxyz
            pose = np.array(event.target.position), pin.Quaternion(w, x, y, z).matrix()
            with self._lock:
                if event.phase == "end":
                    self._drag = None
                elif event.phase == "start" or self._drag is None:
                    self._drag = Drag(pose, pose)
                else:
                    self._drag.now = pose

        self._gizmo = client.client_id, gizmo

    def _remove_gizmo(self) -> None:
        gizmo, self._gizmo = self._gizmo, None
        if gizmo is not None:
            with contextlib.suppress(Exception):  # its browser has gone
                gizmo[1].remove()

    # ---- in the console's thread --------------------------------------------------------------------------

    def _refresh(self) -> None:
        if self.env.closed:
            self.view.end()
            return
        state, owner = self.hold.state()
        now = time.monotonic()
        if state == "held" and owner is not None and now - self._pulse >= PULSE:
            self._pulse = now
            self.view.ping(owner, self.hold.heard)
        with self._lock:
            dragging = self._drag is not None
        gizmo = self._gizmo
        if state != "held" and gizmo is not None:
            self._remove_gizmo()
        elif gizmo is not None and not dragging:
            gizmo[1].position = self.view.scene.tool_pose()[0]
            gizmo[1].wxyz = quaternion(np.eye(3))
        self.panel.update(state)
