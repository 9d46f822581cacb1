"""``vla-rl bench distillation``: its table, and what it refuses."""

from __future__ import annotations

import pytest

from vla_rl.bench.distillation import run
from vla_rl.bench.distillation_table import page
from vla_rl.config import compose
from vla_rl.errors import UserError


def _counted(successes: int, episodes: int, task: str) -> dict[str, object]:
    rate = successes / episodes
    return {"successes": successes, "episodes": episodes, "rate": rate, "per_task": {task: rate}}


def test_what_is_kept_stands_beside_what_is_learned(tmp_path) -> None:
    config = compose("bench_distillation", [f"out={tmp_path}"])
    learned, kept = _counted(9, 10, "drawer-open-v3"), _counted(2, 10, "door-open-v3")
    policies = {
        "student": {"0": _counted(1, 10, "drawer-open-v3")},
        "hard_kept": {"0": learned | {"retained": kept}},
    }
    lines = page(config, ["drawer_open"], ["corner2"], policies).splitlines()
    assert "| policy | success | not distilled | minutes | environment steps | episodes played |" in lines
    row = next(line for line in lines if line.startswith("| distillation, hard labels"))
    assert "90 %" in row and "20 %" in row
    assert "| drawer-open-v3 | 10 | 90 |" in lines
    assert "| door-open-v3 (not distilled) | - | 20 |" in lines


def test_without_such_tasks_the_table_has_no_such_column(tmp_path) -> None:
    config = compose("bench_distillation", [f"out={tmp_path}"])
    text = page(config, ["drawer_open"], ["corner2"], {"student": {"0": _counted(1, 10, "drawer-open-v3")}})
    assert "not distilled" not in text


def test_a_task_is_either_distilled_or_not() -> None:
    with pytest.raises(UserError, match=r"retained.*door_open"):
        run(["only=[door_open,drawer_open]", "retained=[door_open]"])


def test_rehearsal_asks_what_of() -> None:
    with pytest.raises(UserError, match=r"reverse_rehearsed rehearses what is retained"):
        run(["algorithms=[reverse_rehearsed]"])
