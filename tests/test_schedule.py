"""Stages of training: what is due when, that a resumed run is the same run, and what is refused at the start."""

import json

import pytest
import test_train
import torch
from omegaconf import OmegaConf
from reach import Reach, Savable, Walk

import vla_rl.train as train_module
from vla_rl.config import compose
from vla_rl.errors import UserError
from vla_rl.schedule import stages_of
from vla_rl.train import Trainer, open_run

STAGES = [
    {"name": "demonstrations", "updates": 6},
    {"name": "return", "steps": 160, "hard_share": 0.7, "help_share": 0.5},
    {"name": "again", "updates": 4},
    {"name": "guided", "steps": 120, "hard_share": 0.5, "help_share": [1.0, 0.0]},
]


@pytest.fixture(autouse=True)
def walking_base(monkeypatch):
    monkeypatch.setattr(train_module, "load_base", lambda config, candidates=1: Walk(0.02))


def graded(tmp_path, name, stages=STAGES):
    config = OmegaConf.create(test_train.CONFIG)
    config.run.root, config.run.name = str(tmp_path), name
    config.demonstrations = {"episodes": 4, "seed": 50, "expert": {"_target_": "reach.walk"}}
    config.teleop = {"_target_": "vla_rl.policies.intervened.Overseer", "patience": 18, "share": 1.0}
    config.teleop.expert = {"_target_": "reach.walk"}
    config.schedule = {"stages": stages, "hard_states": {"capacity": 8, "every": 4, "back": 6}}
    return config


class Stop(Exception):
    pass


def test_a_graded_run_goes_through_its_stages_and_resumes_bit_for_bit(tmp_path):
    def stop(progress, metrics):
        if progress.steps >= 260:
            raise Stop

    config = graded(tmp_path, "whole")
    run, _ = open_run(config, None, "")
    whole = Trainer(config, run, Savable(4))
    assert whole.demonstrate() == 4
    whole.learn()
    run.close()
    config = graded(tmp_path, "parts")
    run, _ = open_run(config, None, "")
    first = Trainer(config, run, Savable(4), stop)
    first.demonstrate()
    with pytest.raises(Stop):
        first.learn()
    run.close()
    torch.manual_seed(999)
    run, checkpoint = open_run(config, str(tmp_path / "parts"), "")
    again = Trainer(config, run, Savable(4))
    again.restore(checkpoint)
    assert again.progress.steps == 200 and again.schedule.replayed == 2
    assert again.schedule.hard.entries
    again.learn()
    run.close()
    ours, theirs = (test_train.contents(tmp_path / name) for name in ("parts", "whole"))
    assert any("hard_states" in key for key in theirs)
    assert set(ours) == set(theirs) and [key for key in theirs if ours[key] != theirs[key]] == []
    rows = [json.loads(t) for t in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    named = list(dict.fromkeys((r["stage"], r["step"]) for r in rows))
    begun = {}
    for stage, step in named:
        begun.setdefault(stage, step)
    assert begun == {"demonstrations": 0, "return": 0, "again": 160, "guided": 160, "": 280}
    shares = [r["help_share"] for r in rows if r["stage"] == "guided"]
    assert shares == sorted(shares, reverse=True) and shares[0] == 1.0 and shares[-1] < 0.5
    assert whole.algorithm.offline == 10
    assert any(r.get("hard_success") is not None for r in rows)
    assert whole.schedule.operator.share == 1.0  # as configured, when the stages are over


def test_updates_on_demonstrations_come_on_top_and_leave_the_actor_alone(tmp_path):
    config = graded(tmp_path, "r")
    run, _ = open_run(config, None, "")
    trainer = Trainer(config, run, Savable(4))
    trainer.demonstrate()
    learner = trainer.algorithm
    before = [p.clone() for p in learner.actor.parameters()]
    critic = [p.clone() for p in learner.critic.parameters()]
    due = learner.updates_due(1000)
    for _ in range(20):
        learner.update_offline()
    assert learner.updates_due(1000) == due and learner.updates == 20
    assert all(torch.equal(a, b) for a, b in zip(before, learner.actor.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(critic, learner.critic.parameters(), strict=True))
    run.close()


def test_a_person_is_told_when_to_help(tmp_path, capsys):
    class Person:
        state_keys = ()

    config = graded(tmp_path, "r", [{"name": "guided", "steps": 40, "help_share": [1.0, 0.0]}])
    from vla_rl.schedule import Schedule

    schedule = Schedule(config, Reach(1), None, Person(), tmp_path)
    for step, words in ((0, "help when it is needed"), (39, "leave it to the policy")):
        schedule.apply(step)
        schedule.begin([0])
        assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([{"name": "a"}, {"name": "b", "steps": 3}], r"schedule.stages.0 \(a\) lasts for ever"),
        ([{"name": "a", "steps": 3, "updates": 3}], "both steps and updates"),
        ([{"steps": 3}], "has no name"),
        ([{"name": "a", "steps": 3}] * 2, "another stage 'a'"),
        ([{"name": "a", "steps": 0}], "schedule.stages.0.steps=0"),
        ([{"name": "a", "steps": 3, "help_share": [0, 2]}], r"schedule.stages.0.help_share=\[0, 2\]"),
        ([{"name": "a", "steps": 3, "hard_shares": 1}], "did you mean hard_share"),
        ([{"name": "a", "updates": 3, "hard_share": 1}], "no episode is played during updates"),
    ],
)
def test_stages_that_make_no_sense_are_named(stages, words):
    with pytest.raises(UserError, match=words):
        stages_of(stages)


@pytest.mark.parametrize(
    ("change", "env", "words"),
    [
        ({"demonstrations": {"episodes": 0}}, Savable, "set demonstrations=dataset"),
        ({"teleop": None}, Savable, "set teleop="),
        ({}, Reach, "Reach cannot begin episodes from saved states"),
        ({"schedule": {"hard_states": {"bak": 3}}}, Savable, "did you mean back"),
    ],
)
def test_what_a_stage_lacks_is_named_before_anything_starts(tmp_path, change, env, words):
    config = OmegaConf.merge(graded(tmp_path, "r"), change)
    run, _ = open_run(config, None, "")
    with pytest.raises(UserError, match=words):
        Trainer(config, run, env(4))
    run.close()


def test_the_shipped_schedules_are_valid():
    assert compose("train", []).schedule.stages == []
    config = compose("train", ["schedule=graded", "schedule.stages.1.steps=7"])
    assert [stage.steps for stage in stages_of(config.schedule.stages)] == [None, 7, 10000]
