"""A gamepad or SpaceMouse (sensor_msgs/Joy): hold the dead-man button and steer; other buttons say how it went."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict
from torch import Tensor

from real.robot_env import RobotEnv
from real.teleop.buttons import Buttons
from vla_rl.errors import UserError
from vla_rl.keys import STATE
from vla_rl.policies.base import Observation

OPEN = 0.9
"""Share of the way open at which a gripper counts as open when somebody takes over; else it stays shut."""


class Joy:
    """A teleoperator (see ``vla_rl.policies.intervened.Teleoperator``) for one robot.

    Actions are velocities of the target: a device at rest moves nothing, so that taking over and handing back do not
    jerk. A device that falls silent while its dead-man button is held keeps the arm still, and the policy away, until it
    is heard again with the button released.

    Args:
        env: the robot, whose node listens.
        topic: of the device.
        deadman: index of the button that must be held.
        axes: for each action but the gripper's, the axis that moves it, counted from 1; negative = reversed, 0 = none.
        open: index of the button that opens the gripper.
        shut: index of the button that shuts it.
        success: index of the button that ends the episode as a success; None = none.
        failure: index of the button that ends it as a failure; None = none.
        discard: index of the button that throws it away (a recording plays it again); None = none.
        rewind: index of the button that takes the arm back along its path; None = none.
        stop: index of the button that stops the arm until it is reset; None = none.
        rewind_seconds: how far back.
        speed: action of an axis pushed all the way, 0 ... 1.
        deadzone: share of an axis around its middle that counts as rest.
        max_age: seconds after which a message is stale (joy_node repeats at 20 Hz: ``autorepeat_rate``).

    Raises:
        UserError: wrong number of axes, a button used twice.
    """

    state_keys = (STATE,)

    def __init__(
        self,
        env: RobotEnv,
        topic: str = "/joy",
        *,
        deadman: int,
        axes: Sequence[int],
        open: int,
        shut: int,
        success: int | None = None,
        failure: int | None = None,
        discard: int | None = None,
        rewind: int | None = None,
        stop: int | None = None,
        rewind_seconds: float = 2.0,
        speed: float = 1.0,
        deadzone: float = 0.08,
        max_age: float = 0.3,
    ) -> None:
        gripper = env.contract.gripper
        moved = env.env_spec.action_dim - (gripper is not None)
        if len(axes) != moved:
            names = ", ".join(env.env_spec.action_names[:moved])
            raise UserError(
                f"teleop.axes has {len(axes)} entries, {env.contract.name} needs {moved} ({names}); 0 = none"
            )
        if not 0 < speed <= 1:
            raise UserError(f"teleop.speed={speed} must lie in (0, 1]")
        buttons = {"deadman": deadman, "open": open, "shut": shut, "success": success, "failure": failure}
        buttons |= {"discard": discard, "rewind": rewind, "stop": stop}
        self.buttons = Buttons(env, topic, buttons, max_age, rewind_seconds)
        self.env, self.axes, self.speed, self.deadzone = env, list(axes), speed, deadzone
        self.heard, self.grip = self.buttons.heard, 1.0

    def initial_state(self, batch_size: int) -> TensorDict:
        """The device has no state of its own."""
        if batch_size != 1:
            raise UserError(f"a joystick steers one robot, not {batch_size}")
        return TensorDict({}, batch_size=[1])

    def command(self, observation: Observation, state: TensorDict) -> tuple[Tensor, Tensor, TensorDict]:
        """See ``Teleoperator``."""
        holding, taken, begun = self.buttons.engaged()
        if begun:
            self.grip = gripper_now(self.env, observation)
        action = torch.zeros(1, self.env.env_spec.action_dim)
        if holding:
            assert self.heard.newest is not None
            pressed = self.buttons.pressed()
            self.grip = 1.0 if "open" in pressed else -1.0 if "shut" in pressed else self.grip
            values = [self._axis(list(self.heard.newest.message.axes), axis) for axis in self.axes]
            action[0, : len(values)] = torch.tensor(values)
        if self.env.contract.gripper is not None:
            action[0, -1] = self.grip
        return action, torch.tensor([taken]), state

    def _axis(self, values: list[float], axis: int) -> float:
        if axis == 0 or abs(axis) > len(values):
            return 0.0
        value = values[abs(axis) - 1] * (1 if axis > 0 else -1)
        size = max(0.0, abs(value) - self.deadzone) / (1 - self.deadzone)
        return self.speed * min(1.0, size) * (1 if value > 0 else -1)


def gripper_now(env: RobotEnv, observation: Observation) -> float:
    """1.0 where the gripper is open, -1.0 where it is not (it holds something, or is shut); 0.0 without one."""
    gripper = env.contract.gripper
    if gripper is None:
        return 0.0
    position = float(observation[STATE][0, -1])
    return 1.0 if (position - gripper.shut) / (gripper.open - gripper.shut) > OPEN else -1.0
