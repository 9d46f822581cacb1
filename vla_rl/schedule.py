"""Graded human-in-the-loop (VLAC, arXiv 2509.15937): a schedule of stages for training.

A stage lasts ``steps`` environment steps, or is ``updates`` of the learner on the demonstrations alone while the
environment waits. While it lasts, ``hard_share`` of the episodes begin from saved hard states (return and explore), and in
``help_share`` of them whoever may take over does so (human-guided exploration); either may go linearly from one number
to another. After the last stage training goes on as without a schedule.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from vla_rl.config import nearest
from vla_rl.environment import StartState, VlaVectorEnv
from vla_rl.errors import UserError
from vla_rl.rollout.hard_states import HardStates

STATE = "schedule.json"


@dataclass
class Stage:
    """One stage.

    Attributes:
        name: in metrics and plots.
        steps: environment steps it lasts; None = to the end of the run (the last stage).
        updates: learner updates on the demonstrations alone, in place of ``steps``.
        hard_share: share of the episodes that begin from hard states: a number, or [first, last].
        help_share: share of the episodes in which the teleoperator helps; None = as the teleoperator is configured.
    """

    name: str
    steps: int | None = None
    updates: int | None = None
    hard_share: Any = 0.0
    help_share: Any = None

    def share(self, key: str, done: float) -> float | None:
        """``hard_share`` or ``help_share`` when ``done`` (0 ... 1) of the stage is over."""
        value = getattr(self, key)
        if value is None or isinstance(value, (int, float)):
            return None if value is None else float(value)
        first, last = value
        return float(first + (last - first) * min(1.0, done))


def stages_of(node: Any) -> list[Stage]:
    """The stages of ``schedule.stages``, checked.

    Raises:
        UserError: naming the stage, the key and the remedy.
    """
    raw = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    names = [f.name for f in fields(Stage)]
    stages: list[Stage] = []
    for index, values in enumerate(raw or []):  # type: ignore[arg-type]
        where = f"schedule.stages.{index}"
        if not isinstance(values, Mapping) or not values.get("name"):
            raise UserError(f"{where} has no name: give it one")
        for key in values:
            if key not in names:
                raise UserError(f"unknown configuration key '{where}.{key}': {nearest(str(key), names)}")
        stage = Stage(**{str(k): v for k, v in values.items()})
        last = index == len(raw) - 1  # type: ignore[arg-type]
        if stage.name in [other.name for other in stages]:
            raise UserError(f"{where}: there is another stage '{stage.name}': give it a name of its own")
        _check(stage, where, last)
        stages.append(stage)
    return stages


def _check(stage: Stage, where: str, last: bool) -> None:
    if stage.updates is not None and stage.steps is not None:
        raise UserError(f"{where} ({stage.name}) has both steps and updates: leave one out")
    if stage.updates is None and stage.steps is None and not last:
        raise UserError(
            f"{where} ({stage.name}) lasts for ever, and stages follow it: set its steps or updates"
        )
    for key in ("steps", "updates"):
        value = getattr(stage, key)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise UserError(f"{where}.{key}={value} must be a whole number, at least 1")
    for key in ("hard_share", "help_share"):
        value = getattr(stage, key)
        ends = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if value is None:
            continue
        if len(ends) > 2 or not all(isinstance(v, (int, float)) and 0 <= v <= 1 for v in ends):
            raise UserError(f"{where}.{key}={value} must be a share in [0, 1], or two: [first, last]")
        if len(ends) == 1:
            setattr(stage, key, float(ends[0]))
        if stage.updates is not None and any(ends):
            raise UserError(
                f"{where}.{key}: no episode is played during updates; give {key} to a stage of steps"
            )


class Schedule:
    """What of a run is due; the collector tells it of every episode (``vla_rl.rollout.collector.Starts``).

    Args:
        config: of the run: ``schedule``, ``demonstrations``, ``run.seed``.
        env: the environments.
        algorithm: the learner.
        operator: who may take over; None = nobody.
        folder: of the run.

    Raises:
        UserError: a stage that this run cannot have, with the remedy.
    """

    def __init__(self, config: Any, env: VlaVectorEnv, algorithm: Any, operator: Any, folder: Path) -> None:
        node = config.get("schedule") or {}
        self.stages = stages_of(node.get("stages"))
        self.operator, self.replayed, self.stage = operator, 0, ""
        """``replayed``: stages of updates that are over; ``stage``: name of the present one."""
        self._own_share = getattr(operator, "share", None)
        self._draw = np.random.default_rng(int(config.run.seed))
        self.hard: HardStates | None = None
        self._help: float | None = None
        for stage in self.stages:
            if stage.updates is not None:
                demonstrations = config.get("demonstrations") or {}
                if not demonstrations.get("episodes"):
                    raise UserError(
                        f"schedule: stage '{stage.name}' learns from demonstrations: set demonstrations=dataset "
                        "demonstrations.path=FOLDER, or demonstrations=expert"
                    )
                if not hasattr(algorithm, "update_offline"):
                    raise UserError(
                        f"schedule: stage '{stage.name}' needs updates on demonstrations alone, which "
                        f"{type(algorithm).__name__} does not offer: leave the stage out (or run.learner=inline)"
                    )
            if stage.help_share is not None and operator is None:
                raise UserError(
                    f"schedule: in stage '{stage.name}' somebody helps: set teleop= (overseer, joy, leader ...), or "
                    "take help_share out"
                )
        if any(self._returns(stage) for stage in self.stages):
            settings = dict(node.get("hard_states") or {})
            for key in settings:
                if key not in ("capacity", "every", "back"):
                    valid = nearest(str(key), ["capacity", "every", "back"])
                    raise UserError(f"unknown configuration key 'schedule.hard_states.{key}': {valid}")
            seed = int(config.run.seed)
            self.hard = HardStates(env, seed=seed, folder=folder / "hard_states", **settings)

    @staticmethod
    def _returns(stage: Stage) -> bool:
        return bool(stage.share("hard_share", 0.0) or stage.share("hard_share", 1.0))

    def offline(self, step: int) -> Stage | None:
        """The next stage of updates, if its time has come."""
        begin, seen = 0, 0
        for stage in self.stages:
            if begin > step:
                return None
            if stage.updates is not None:
                if seen == self.replayed:
                    return stage
                seen += 1
            begin += stage.steps or 0
        return None

    def apply(self, step: int) -> bool:
        """Make the shares those of ``step``; True when another stage has begun."""
        begin, present, later = 0, None, []
        for index, stage in enumerate(self.stages):
            if stage.updates is None and (stage.steps is None or step < begin + stage.steps):
                present, later = stage, self.stages[index:]
                break
            begin += stage.steps or 0
        done = (step - begin) / present.steps if present is not None and present.steps else 0.0
        self._help = present.share("help_share", done) if present is not None else None
        if self._own_share is not None:
            self.operator.share = self._own_share if self._help is None else self._help
        if self.hard is not None:
            self.hard.share = (present.share("hard_share", done) or 0.0) if present is not None else 0.0
            self.hard.keeping = any(self._returns(stage) for stage in later)
        name = present.name if present is not None else ""
        changed, self.stage = name != self.stage, name
        return changed

    def metrics(self) -> dict[str, Any]:
        """What to log beside the rest; nothing without stages."""
        if not self.stages:
            return {}
        values: dict[str, Any] = {"stage": self.stage}
        if self.hard is not None:
            tried = [entry for entry in self.hard.entries if entry.tries]
            values |= {"hard_states": len(self.hard.entries), "hard_share": self.hard.share}
            if tried:
                values["hard_success"] = sum(e.wins for e in tried) / sum(e.tries for e in tried)
        if self._help is not None:
            values["help_share"] = self._help
        return values

    # ---- told by the collector --------------------------------------------------------------------------

    def begin(self, rows: Sequence[int]) -> dict[int, StartState]:
        """Where the new episodes of ``rows`` begin; a person, whose dead-man button always works, is told when to help."""
        if self._help is not None and self._own_share is None:
            helping = self._draw.random() < self._help
            print(
                "this episode: help when it is needed" if helping else "this episode: leave it to the policy"
            )
        return self.hard.begin(rows) if self.hard is not None else {}

    def look(self, steps: Sequence[int]) -> None:
        """``steps`` [B] since each row's beginning."""
        if self.hard is not None:
            self.hard.look(steps)

    def took_over(self, row: int, step: int) -> None:
        """Somebody is engaged in ``row`` at ``step``."""
        if self.hard is not None:
            self.hard.took_over(row, step)

    def rewound(self, row: int, step: int) -> None:
        """The episode in ``row`` is back at ``step``."""
        if self.hard is not None:
            self.hard.rewound(row, step)

    def ended(self, row: int, success: bool, step: int) -> bool:
        """The episode in ``row`` is over; True when it had begun from a hard state."""
        if self.hard is None:
            return False
        self.hard.ended(row, success, step)
        return self.hard.origin[row] is not None

    # ---- checkpoints ------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Into a checkpoint."""
        (folder / STATE).write_text(json.dumps({"replayed": self.replayed, "stage": self.stage}))
        if self.hard is not None:
            self.hard.save(folder)

    def load(self, folder: Path) -> None:
        """From a checkpoint; one of a run that had no schedule counts as the beginning."""
        path = folder / STATE
        if path.is_file():
            state = json.loads(path.read_text())
            self.replayed, self.stage = state["replayed"], state["stage"]
            if self.hard is not None:
                self.hard.load(folder)
