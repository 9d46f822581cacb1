"""What a soak reports: from journals of a real learner, whole and tampered with, and from made-up memory."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime" / "distributed"))
sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from test_learner import collector, settings

from vla_rl.bench.soak import Soak
from vla_rl.bench.soak import run as soaked
from vla_rl.bench.soak_report import Audit, growth, write_report
from vla_rl.errors import UserError
from vla_rl.runtime.distributed.learner import DistributedLearner


@pytest.fixture
def played(tmp_path):
    """A run whose learner has taken some batches of one collector, and its own account of them."""
    learner = DistributedLearner(settings(tmp_path / "run", steps=120))
    collector(0, learner).run()
    learner.batches.rotate()
    slots = [dict(slot.__dict__) for slot in learner.slots.values()]
    return tmp_path / "run", {
        "distributed": slots,
        "progress": {"steps": learner.learner.steps, "episodes": 3},
    }


def test_every_batch_is_found_though_the_journal_is_deleted(played, tmp_path):
    run, counted = played
    audit = Audit(run, tmp_path / "links")
    audit.look()
    assert not audit.steps, "what may still be written to is not read"
    for path in (run / "batches").glob("*.journal"):
        path.unlink()
    audit.look()
    assert sum(audit.steps.values()) == counted["progress"]["steps"] >= 120
    assert audit.problems(counted) == [] and not list((tmp_path / "links").iterdir())


def test_a_batch_that_is_missing_or_counts_twice_is_told(played, tmp_path):
    run, counted = played
    audit = Audit(run, tmp_path / "links")
    (journal,) = (run / "batches").glob("*.journal")
    shutil.copy(journal, journal.with_name("000000001-2.journal"))
    audit.look(final=True)
    assert any("stands twice" in problem for problem in audit.problems(counted))
    audit.twice.clear()
    del audit.steps[sorted(audit.steps)[2]]
    missing, fewer = audit.problems(counted)
    assert "follows one that is missing" in missing
    assert "steps in the journals" in fewer and f"{counted['progress']['steps']} counted" in fewer


def test_growth_is_of_the_last_quarter_over_the_second():
    rows = [(float(t), 100.0 if t < 50 else 110.0) for t in range(100)]
    assert growth([(0.0, 5.0), *rows]) == {"second": 100.0, "last": 110.0, "growth": pytest.approx(0.1)}
    assert growth([(0.0, 1.0)]) == {}


def test_the_report_says_what_grew_and_what_stood_still(played, tmp_path):
    run, counted = played
    audit = Audit(run, tmp_path / "links")
    audit.look(final=True)
    config = SimpleNamespace(minutes=2.0, within=0.05, out=str(tmp_path / "out"))
    soak = Soak(killed={"learner": 2}, pauses=[("learner", 10.0), ("learner", 20.0)])
    soak.memory = [(float(t), "learner", 100.0) for t in range(100)]
    soak.disk = [(float(t), 1.0) for t in range(100)]
    assert write_report(config, soak, audit, counted) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert "None stands twice" in text and "| learner | 15 | 20 |" in text and "2 learner" in text
    soak.memory = [(float(t), "learner", 100.0 + t) for t in range(100)]
    assert write_report(config, soak, audit, counted) == 1
    assert "more memory at the end" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(UserError, match="kinds=printer"):
        soaked(["kinds=[printer]", f"work={tmp_path / 'w'}"])
