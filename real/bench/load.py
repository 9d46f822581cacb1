"""What runs beside a control loop in a benchmark: motion without end, and a VLA that never stops inferring."""

from __future__ import annotations

import threading
from types import TracebackType

import torch
from torch import Tensor

from real.robot_env import RobotEnv
from vla_rl.errors import UserError
from vla_rl.keys import STATE, TASK
from vla_rl.policies.base import Observation
from vla_rl.policies.lerobot import LeRobotPolicy

LOW, HIGH = torch.tensor([0.40, -0.20, 0.10]), torch.tensor([0.60, 0.20, 0.35])
"""Box of the goals: base frame, metres."""

GAIN = 0.3


class Wander:
    """Goes from goal to goal, as fast as it may.

    Args:
        env: a robot under ``ee`` control.
        seed: of the goals.
    """

    def __init__(self, env: RobotEnv, seed: int = 0) -> None:
        control = env.contract.control
        if control.mode != "ee":
            raise UserError(f"control.mode={control.mode}: this benchmark moves a robot under ee control")
        self.reach, self.generator = control.translation, torch.Generator().manual_seed(seed)
        self.tcp = slice(len(env.contract.joints), len(env.contract.joints) + 3)
        self.size, self.left, self.goal = env.env_spec.action_dim, 0, LOW

    def __call__(self, observation: Observation) -> Tensor:
        """Action [1, A]."""
        gap = self.goal - observation[STATE][0, self.tcp]
        self.left -= 1
        if self.left <= 0 or gap.norm() < 0.02:
            self.goal = LOW + (HIGH - LOW) * torch.rand(3, generator=self.generator)
            self.left = 40
        step = gap * (GAIN / self.reach)
        action = torch.zeros(1, self.size)
        action[0, :3] = step / step.norm().clamp(min=1.0)
        action[0, -1] = 1.0
        return action


class Inference:
    """Context manager: a thread that asks a VLA for chunks on the newest pictures, one after the other.

    Its actions are not executed; it takes the processor from the loop as a policy of that size does.

    Args:
        path: LeRobot policy folder; "" = no load.
        env: whose pictures it sees.
    """

    def __init__(self, path: str, env: RobotEnv) -> None:
        self.policy = LeRobotPolicy(path) if path else None
        self.env, self.count = env, 0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, name="inference", daemon=True)

    def _run(self) -> None:
        policy = self.policy
        assert policy is not None
        spec, features = policy.spec, policy.config.input_features
        while not self.stopping.is_set():
            pictures = list(self.env.look().values())
            observation: Observation = {k: torch.zeros(1, *features[k].shape) for k in spec.state_keys}
            for i, key in enumerate(spec.image_keys):
                observation[key] = torch.nn.functional.interpolate(
                    pictures[i % len(pictures)].float(), features[key].shape[-2:]
                ).to(torch.uint8)
            observation[TASK] = [self.env.task]
            policy.act(observation, policy.initial_state(1))
            self.count += 1

    def __enter__(self) -> Inference:
        if self.policy is not None:
            self.thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stopping.set()
        if self.policy is not None:
            self.thread.join(10.0)
