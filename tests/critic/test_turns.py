"""``vla-rl critic turns``: a critic that is exploited is shown how, and the same command goes on where it was stopped."""

import json
import shutil

import pytest
import tiny

from vla_rl.cli import main
from vla_rl.config import compose
from vla_rl.critic.turns import Turns, falsely_believed
from vla_rl.data.dataset import load_episodes

LEARNER = ["algorithm=residual_td3", "algorithm.critic_updates=0", "algorithm.warmup_steps=40"]
RUN = [
    "run.steps=2000",
    "run.base_episodes=0",
    "run.final_episodes=2",
    "run.film=0",
    "run.checkpoint_every=40",
]


def here(arguments, log):
    """A command in this process; starting eight of them would take minutes."""
    assert main([str(argument) for argument in arguments]) == 0


def test_an_exploited_critic_sees_what_fooled_it(tmp_path):
    base = tiny.lerobot_folder(
        tmp_path / "act", "act", images=False, env_state=39, state=4, action=4, **tiny.ACT
    )
    out = tmp_path / "out"
    own = [
        f"path={tiny.drawer_critic(tmp_path)}",
        f"out={out}",
        "kinds={expert: 2, base: 2, wild: 2, miss: 2}",
        "wild_steps=40",
        "train.held_out=0",
        "train.batch_size=2",
        "train.pairs.references=2",
        "first_steps=2",
        "turn_steps=2",
        "turns=2",
        "episodes=2",
    ]
    training = [*tiny.DRAWER, *LEARNER, *RUN, "policy=lerobot", f"policy.path={base}", "policy.horizon=4"]
    training.append("reward.threshold=0.0")  # believes in everything
    config = compose("critic_turns", own)
    result = Turns(config, training, here).take()
    assert result == json.loads((out / "turns.json").read_text())
    assert len(result["turns"]) == 2 and not result["held"]
    assert all("exploits it" in turn["stopped"] for turn in result["turns"])
    assert result["critic"].endswith("critic-2") and (out / "critic-2" / "critic.json").is_file()
    assert (out / "run-1" / "exploited" / "checkpoints").is_dir()
    assert len(load_episodes(out / "data-fooled-1")) == 2
    # What is there is kept; what is missing is made.
    shutil.rmtree(out / "run-2")
    before = (out / "critic-2" / "critic.json").stat().st_mtime_ns
    assert Turns(config, training, here).take() == result
    assert (out / "critic-2" / "critic.json").stat().st_mtime_ns == before


def test_what_was_believed_wrongly_is_the_audit_s_last_word(tmp_path):
    assert falsely_believed(tmp_path) == 0
    rows = [{"step": 1, "false_done": 0.5}, {"step": 2, "false_done": 0.25}, {"step": 3}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert falsely_believed(tmp_path) == 0.25


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("wrong=2", "wrong=2 must be in 0..1"),
        ("turns=0", "turns=0: at least 1"),
        ("path=nowhere", "path=nowhere is no critic's folder"),
        ("experiment=table", "experiment=table: critic turns sets this itself"),
        ("algorithm.magnitud=3", "algorithm.magnitud"),
        ("+kinds.guesses=3", "kinds.guesses: choose from"),
    ],
)
def test_what_does_not_fit_is_said_first(tmp_path, capsys, given, said):
    (tmp_path / "critic").mkdir()
    (tmp_path / "critic" / "config.json").write_text("{}")
    whole = ["env=metaworld", "policy=lerobot", f"out={tmp_path / 'out'}"]
    assert main(["critic", "turns", f"path={tmp_path / 'critic'}", *whole, given]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
