"""RPD's table: when a run first was as good as its teacher, and that runs of several sessions fill one page."""

import json

import pytest

from vla_rl.bench.rpd import steps_until, write_table
from vla_rl.config import compose


def test_a_level_is_reached_when_it_is_held_for_some_rows():
    success = [(1000, 0.2), (2000, 0.6), (3000, 0.4), (4000, 0.5), (5000, 0.6), (6000, 0.7)]
    assert steps_until(success, 0.5) == 4000
    assert steps_until(success, 0.5, in_a_row=1) == 2000
    assert steps_until(success, 0.65) is None
    assert steps_until([], 0.1) is None


def evaluation(successes):
    return {"successes": successes, "episodes": 100, "rate": successes / 100, "wilson95": [0.0, 1.0]}


def run_folder(folder, final, rates):
    folder.mkdir(parents=True)
    (folder / "final.json").write_text(json.dumps(evaluation(final)))
    (folder / "report.json").write_text(
        json.dumps({"train_seconds": 60.0, "env_steps": 50_000, "episodes": 900})
    )
    rows = [{"step": 10_000 * (i + 1), "success": rate} for i, rate in enumerate(rates)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("sessions", [1, 2])
def test_the_page_says_how_soon_each_run_was_as_good_as_the_teacher(tmp_path, sessions):
    runs = {"rpd-0": (90, [0.4, 0.7, 0.8, 0.8, 0.9]), "ppo-0": (40, [0.1, 0.2, 0.3, 0.3, 0.4])}
    for session in range(sessions):
        work = tmp_path / f"work{session}"
        for name, (final, rates) in list(runs.items())[session::sessions]:
            run_folder(work / "push_cube" / name, final, rates)
        for base, successes in (("teacher", 60), ("student", 10)):
            (work / "push_cube" / f"{base}.json").write_text(json.dumps(evaluation(successes)))
        write_table(compose("bench_rpd", [f"work={work}", f"out={tmp_path / 'out'}"]))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| push_cube | rpd | 20000 | 40 % | 70 % | 90 % | - | - |" in text
    assert "| push_cube | ppo | never | 10 % | 20 % | 40 % | - | - |" in text
    assert "| push_cube | 60 % (50-69) | 10 % (6-17) | 90 % (83-94) [90] | 40 % (31-50) [40] |" in text
    names = {row["name"] for row in json.loads((tmp_path / "out" / "results.json").read_text())["rows"]}
    assert names == {f"push_cube: {column}" for column in ("teacher", "student", "rpd", "ppo")}
