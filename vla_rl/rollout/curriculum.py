"""Which task is played next, by how well each goes (VLA-RL, arXiv 2505.18719, section 3.4).

The published rule draws task j with probability ~ exp((0.5 - s_j) / temperature), s_j its recent success: the lower, the
likelier, so that tasks which nobody can do yet take the time. ``near_half`` draws ~ exp(-|s_j - 0.5| / temperature): those
first of which the policy's own episodes tell most. A task of which little is known counts as half done.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from vla_rl.config import nearest
from vla_rl.environment import VlaVectorEnv
from vla_rl.errors import UserError

RULES = ("near_half", "lowest", "uniform")
STATE = "curriculum.json"


@dataclass
class CurriculumConfig:
    """Settings.

    Attributes:
        rule: ``near_half``, ``lowest`` (the published one) or ``uniform``.
        temperature: of the draw, in units of success.
        window: newest episodes of a task that its success is counted over.
        least: episodes of a task before its success counts.
        share: smallest share of the episodes that any task gets, so that none is forgotten.
    """

    rule: str = "near_half"
    temperature: float = 0.2
    window: int = 20
    least: int = 5
    share: float = 0.05


def curriculum_of(node: Any, env: VlaVectorEnv, seed: int) -> Curriculum | None:
    """The curriculum that ``curriculum=`` asks for; None without one.

    Raises:
        UserError: an unknown key, or see ``Curriculum``.
    """
    if not node or not node.get("rule"):
        return None
    names = [f.name for f in fields(CurriculumConfig)]
    for key in node:
        if key not in names:
            raise UserError(f"unknown configuration key 'curriculum.{key}': {nearest(str(key), names)}")
    return Curriculum(CurriculumConfig(**dict(node)), env, seed)


class Curriculum:
    """Chooses the task of every episode that begins; told of every one that ends.

    Args:
        config: settings.
        env: whose rows may play any of its tasks.
        seed: of the draws.

    Raises:
        UserError: a setting that means nothing, or an environment with one task, or one whose rows cannot change theirs.
    """

    def __init__(self, config: CurriculumConfig, env: VlaVectorEnv, seed: int) -> None:
        self.tasks = list(dict.fromkeys(env.own_task_ids()))
        _check(config, self.tasks, env)
        self.config = config
        self.draw = np.random.default_rng(seed)
        self.results: dict[str, deque[bool]] = {task: deque(maxlen=config.window) for task in self.tasks}
        self.begun = dict.fromkeys(self.tasks, 0)
        """Episodes begun of each task."""

    def success(self, task: str) -> float:
        """Recent success of ``task``; 0.5 while little is known of it."""
        results = self.results[task]
        return sum(results) / len(results) if len(results) >= self.config.least else 0.5

    def shares(self) -> np.ndarray:
        """[tasks] probabilities of the next draw."""
        config = self.config
        away = np.array([self.success(task) for task in self.tasks]) - 0.5
        order = {"near_half": -np.abs(away), "lowest": -away, "uniform": 0 * away}[config.rule]
        weights = np.exp((order - order.max()) / config.temperature)
        left = 1 - config.share * len(self.tasks)
        return config.share + left * weights / weights.sum()

    def choose(self, rows: Sequence[int]) -> dict[int, str]:
        """The task of each of ``rows``, which begin now."""
        drawn = self.draw.choice(len(self.tasks), size=len(rows), p=self.shares())
        chosen = {row: self.tasks[i] for row, i in zip(rows, drawn, strict=True)}
        for task in chosen.values():
            self.begun[task] += 1
        return chosen

    def ended(self, task: str, success: bool) -> None:
        """An episode of ``task`` is over."""
        self.results[task].append(success)

    def metrics(self) -> dict[str, float]:
        """``success_TASK`` and ``share_TASK``."""
        shares = dict(zip(self.tasks, self.shares().tolist(), strict=True))
        return {
            name: value
            for task in self.tasks
            for name, value in ((f"success_{task}", self.success(task)), (f"share_{task}", shares[task]))
        }

    def save(self, folder: Path) -> None:
        """Into a checkpoint."""
        state = {
            "results": {task: list(results) for task, results in self.results.items()},
            "begun": self.begun,
            "draw": self.draw.bit_generator.state,
        }
        (folder / STATE).write_text(json.dumps(state))

    def load(self, folder: Path) -> None:
        """From a checkpoint; one of a run without a curriculum counts as the beginning."""
        if not (folder / STATE).is_file():
            return
        state: dict[str, Any] = json.loads((folder / STATE).read_text())
        for task, results in state["results"].items():
            self.results[task].extend(results)
        self.begun, self.draw.bit_generator.state = state["begun"], state["draw"]


def _check(config: CurriculumConfig, tasks: list[str], env: VlaVectorEnv) -> None:
    if config.rule not in RULES:
        raise UserError(f"curriculum.rule={config.rule}: {nearest(config.rule, RULES)}")
    if config.temperature <= 0:
        raise UserError(f"curriculum.temperature={config.temperature} must be above 0")
    if not 1 <= config.least <= config.window:
        raise UserError(
            f"curriculum.least={config.least} must be from 1 to curriculum.window={config.window}"
        )
    if not env.task_choice:
        raise UserError(
            f"curriculum: {env.env_spec.id} cannot let its rows change their task: set curriculum=none"
        )
    if len(tasks) < 2:
        raise UserError(
            f"curriculum: there is one task, {tasks[0]}: name several (env.ids), or set curriculum=none"
        )
    if not 0 <= config.share * len(tasks) <= 1:
        raise UserError(
            f"curriculum.share={config.share}: {len(tasks)} tasks with that share are more than all"
        )
