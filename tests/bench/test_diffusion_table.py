"""The diffusion table: success at equal steps comes from what runs have logged, and says what is missing."""

import json

import pytest

from vla_rl.bench.diffusion import settings_of
from vla_rl.bench.diffusion_table import (
    AT_STEPS,
    costs,
    finished,
    own_settings,
    page,
    policy_of,
    while_training,
)
from vla_rl.config import compose


def logged(folder, rows):
    folder.mkdir()
    lines = [
        json.dumps({"step": step} | ({"success": success} if success is not None else {}))
        for step, success in rows
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_success_is_the_newest_before_each_step_that_was_reached(tmp_path):
    run = logged(tmp_path / "run", [(500, None), (1000, 0.1), (29_000, 0.4), (31_000, 0.5), (60_000, 0.8)])
    assert while_training(run) == {"30000": 0.4, "60000": 0.8}
    assert while_training(logged(tmp_path / "short", [(500, None)])) == {}
    late = logged(tmp_path / "late", [(40_000, 0.3), (70_000, 0.6)])
    assert while_training(late) == {"60000": 0.3}


def test_the_page_compares_columns_at_equal_steps(tmp_path):
    result = {
        "successes": 90,
        "episodes": 100,
        "rate": 0.9,
        "train_seconds": 60.0,
        "env_steps": 60_000,
        "train_episodes": 500,
    }
    tasks = {
        "window_open": {
            "dsrl": {
                "0": result | {"training_success": {"60000": 0.9}},
                "1": result | {"training_success": {"60000": 0.7}},
            },
            "dppo": {"0": result | {"training_success": {"60000": 0.5, "250000": 0.95}}, "1": result},
        }
    }
    text = page(tasks, compose("bench_diffusion", [f"out={tmp_path}"]))
    assert "| window_open, 60000 | 50 % (1) | - | 80 % (2) | - |" in text
    assert "| window_open, 250000 | 95 % (1) | - | - | - |" in text
    assert f"window_open, {AT_STEPS[0]}" not in text
    assert "equal environment steps" not in page({}, compose("bench_diffusion", [f"out={tmp_path}"]))


@pytest.mark.parametrize(
    ("name", "title", "bases"),
    [
        (
            "diffusion",
            "# Diffusion and flow policies",
            "LeRobot's MultiTaskDiT on simulator state, 5 denoising",
        ),
        ("vlac", "# A vision-language critic", "LeRobot's MultiTaskDiT on simulator state, 5 denoising"),
        ("token_ppo", "# Token PPO", "token VLAs (token_nano) that see two cameras' pictures"),
    ],
)
def test_each_page_says_what_its_bases_are(tmp_path, name, title, bases):
    config = compose(f"bench_{name}", [f"out={tmp_path}"])
    text = page({}, config)
    assert text.startswith(title) and f"`vla-rl bench {name}`" in text and bases in text
    assert all(asked.base in config.bases for asked in config.runs.values())
    assert set(config.algorithms) <= set(config.runs)


def test_a_run_that_is_like_another_has_its_settings_before_its_own():
    config = compose("bench_vlac", [])
    turns, quick, alone = (settings_of(config, name) for name in ("turns", "turns_quick", "turns_no_expert"))
    assert quick == [*turns, "path=assets/vlac-keypoints", "algorithm.utd=10"]
    assert alone[: len(quick)] == quick and "kinds.expert=0" in alone[len(quick) :]


def test_a_run_in_turns_is_over_with_its_last_and_costs_all_of_them(tmp_path):
    run = tmp_path / "turns-0"
    for number, stopped in ((1, "exploited"), (2, None)):
        part = run / f"run-{number}"
        part.mkdir(parents=True)
        report = {"train_seconds": 10.0, "env_steps": 100 * number, "episodes": 7, "stopped": stopped}
        (part / "report.json").write_text(json.dumps(report))
    turns = [{"run": str(run / "run-1")}, {"run": str(run / "run-2")}]
    told = {"turns": turns, "policy": str(run / "run-2"), "held": True, "over": True}
    (run / "turns.json").write_text(json.dumps(told | {"over": False}))
    assert policy_of(run) is None and not list(finished(tmp_path, "turns"))
    (run / "turns.json").write_text(json.dumps(told))
    assert policy_of(run) == run / "run-2" and list(finished(tmp_path, "turns")) == [("0", run)]
    assert costs(run) == {
        "train_seconds": 20.0,
        "env_steps": 300,
        "train_episodes": 14,
        "turns": 2,
        "stopped": None,
    }


def test_what_a_task_sets_otherwise_is_on_the_page(tmp_path):
    config = compose("bench_diffusion", [f"out={tmp_path}"])
    assert own_settings(config.tasks.push_cube_40, "dppo")[0] == "algorithm.time_limit=end"
    assert (
        own_settings(config.tasks.pull_cube_40, "dsrl") == own_settings(config.tasks.push_cube, "dppo") == []
    )
    assert "- push_cube_40, DPPO: `algorithm.time_limit=end`" in page({}, config)
