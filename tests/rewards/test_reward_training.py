"""``reward=vlac`` from the command line: a run on Meta-World that sees only the critic, resumed, with the audit in its log."""

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file

from vla_rl.cli import main
from vla_rl.rewards.vlac import JudgedEnv
from vla_rl.runtime.run_folder import read_metrics

RUN = [
    "policy=lerobot", "policy.horizon=4", "algorithm=residual_td3", "demonstrations=none", "run.base_episodes=2", "run.final_episodes=2",
    "run.film=0", "algorithm.critic_updates=0", "algorithm.warmup_steps=40",
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.lerobot_folder(
        tmp_path_factory.mktemp("base") / "act",
        "act",
        images=False,
        env_state=39,
        state=4,
        action=4,
        **tiny.ACT,
    )


@pytest.fixture(scope="module")
def critic(tmp_path_factory):
    return tiny.drawer_critic(tmp_path_factory.mktemp("critic"))


def test_a_run_and_its_continuation(critic, base, tmp_path, monkeypatch):
    run = [
        *RUN,
        f"policy.path={base}",
        f"run.root={tmp_path}",
        "run.name=a",
        "run.checkpoint_every=40",
        "run.log_every=40",
    ]
    reward = [
        "reward=vlac",
        f"reward.path={critic}",
        "reward.threshold=0.999",
        "reward.window=200",
        "reward.weight=0.25",
    ]
    told = []
    monkeypatch.setattr(JudgedEnv, "discounted_by", lambda self, *discount: told.append(discount))
    assert main(["train", *tiny.DRAWER, *run, *reward, "run.steps=80"]) == 0
    assert told == [(0.97, 1)], "the shaping has to know the learner's discount"
    rows = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert any("believed" in row and "false_done" in row for row in rows)
    base = json.loads((tmp_path / "a" / "base.json").read_text())
    assert base["episodes"] == 2
    assert main(["train", f"resume={tmp_path / 'a'}", "run.steps=120"]) == 0


@pytest.mark.parametrize("launcher", ["local", pytest.param("ray", marks=pytest.mark.learning)])
def test_a_halted_run_goes_back_to_the_policy_that_was_to_be_believed(
    critic, base, tmp_path, capsys, launcher
):
    run = [
        *tiny.DRAWER,
        *RUN,
        f"policy.path={base}",
        f"run.root={tmp_path}",
        "run.name=a",
        "run.checkpoint_every=40",
        "run.log_every=20",
    ]
    reward = ["reward=vlac", f"reward.path={critic}", "reward.threshold=0.0"]
    spread = ["launcher=ray", "num_collectors=2", "launcher.every=5"] if launcher == "ray" else []
    assert main(["train", *run, *reward, *spread, "run.steps=2000", "run.keep_checkpoints=1"]) == 0
    said = capsys.readouterr().out
    assert "successes that the critic believed in were none: the policy exploits it" in said
    assert (tmp_path / "a" / "pictures" / "taken-for-done-and-not.png").is_file()
    assert "Taken for done and not" in (tmp_path / "a" / "report.html").read_text()
    assert any("false_done" in row for row in read_metrics(tmp_path / "a" / "metrics.jsonl"))
    before = int(said.split("going back to the policy of step ")[1].split(",")[0])
    kept = sorted((tmp_path / "a" / "checkpoints").iterdir())
    assert [int(folder.name) for folder in kept][0] == before < int(kept[-1].name) < 2000 and len(kept) == 2
    old, new = (load_file(folder / "algorithm" / "algorithm.safetensors") for folder in kept)
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert json.loads((kept[-1] / "trainer.json").read_text())["trusted"] == kept[0].name


def test_what_does_not_fit_is_said_before_anything_is_played(critic, base, tmp_path, capsys):
    run = [*tiny.DRAWER, *RUN, f"policy.path={base}", f"run.root={tmp_path}", "run.steps=40"]
    assert main(["train", *run, "reward=vlac", f"reward.path={tmp_path}"]) == 2
    assert "is no critic" in capsys.readouterr().err
    small = [word for word in run if "image_size" not in word]
    assert main(["train", *small, "reward=vlac", f"reward.path={critic}"]) == 2
    assert "pictures of 96x96, the critic was trained on 64x64" in capsys.readouterr().err
    assert main(["train", *run, "reward=vlac", f"reward.path={critic}", "reward.shapping=none"]) == 2
    assert "reward.shap" in capsys.readouterr().err
