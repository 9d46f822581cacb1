"""Every documented mistake is one line on stderr and exit code 2, before anything slow starts."""

import json
import subprocess
import sys
import time

import pytest
import tiny

from vla_rl.cli import COMMANDS, main
from vla_rl.commands import train


def run(capsys, *args):
    code = main(list(args))
    out = capsys.readouterr()
    return code, out.out, out.err


def test_help_is_quick_and_complete():
    best = 9.0
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "vla_rl.cli", "--help"], capture_output=True, text=True)
        best = min(best, time.perf_counter() - began)
    assert done.returncode == 0 and all(name in done.stdout for name in COMMANDS)
    heavy = "import sys, vla_rl.cli; vla_rl.cli.main(['--help']); print([m for m in ('torch','hydra') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True)
        .stdout.strip()
        .endswith("[]")
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(capsys, name):
    code, out, _ = run(capsys, name, "--help")
    assert code == 0 and f"vla-rl {name}" in out


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["trian"], "did you mean train"),
        (["eval", "episodse=3"], "did you mean episodes"),
        (["eval", "env=tabel"], "unknown env 'tabel': did you mean table"),
        (["train", "algorithm.scael=0.2"], "did you mean algorithm.scale"),
        (["train", "env=metaworld", "env.imge_size=9"], "'env.imge_size': did you mean env.image_size"),
        (["train", "experiment=tabel"], "did you mean table"),
        (["train", "nonsense"], "'nonsense' is not key=value"),
        (["bench", "distillation", "study=[work=there]"], "study=[work=there] cannot be read"),
        (["train", "resume=runs/does-not-exist"], "no run there"),
        (["pretrain", "datasets=[nowhere]", "out=x"], "nowhere is not a LeRobotDataset"),
        (
            ["pretrain", "datasets=[no]", "out=x", "train.overrides={dim_model:64}"],
            "no is not a LeRobotDataset",
        ),
        (["bench", "colector"], "did you mean collector"),
        (["bench", "residual", "only=[lfit]"], "did you mean lift"),
        (["eval", "env=maniskill", "env.backend=gpu"], "env.backend=gpu is not one of auto, cpu, cuda"),
        (
            ["eval", "env=table", "env.cameras=[]", "policy.path=assets/smolvla-nano"],
            "observation.images.base",
        ),
    ],
)
def test_mistakes_are_one_line(capsys, args, expected):
    code, _, err = run(capsys, *args)
    assert code == 2
    assert expected in err and len(err.strip().splitlines()) == 1


def test_an_expert_is_evaluated_with_the_noise_that_it_is_given(tmp_path):
    play = ["env=metaworld", "env.ids=[reach-v3]", "env.cameras=[]", "env.num_envs=2", "env.num_workers=0"]
    for noise, successes in ((0.0, 4), (3.0, 0)):
        asked = ["policy=expert", f"policy.noise={noise}", "episodes=4", f"json={tmp_path / 'found.json'}"]
        assert main(["eval", *play, "env.max_episode_steps=80", *asked]) == 0
        assert json.loads((tmp_path / "found.json").read_text())["successes"] == successes


def test_an_interrupted_run_says_how_to_go_on(capsys, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt  # what Ctrl-C raises

    monkeypatch.setattr(train, "_work", interrupted)
    base = tiny.lerobot_folder(
        tmp_path / "act", "act", images=False, env_state=39, state=4, action=4, **tiny.ACT
    )
    play = ["env=metaworld", "env.ids=[reach-v3]", "env.cameras=[]", "env.num_envs=2", "env.num_workers=0"]
    asked = [f"policy.path={base}", "policy.horizon=4", f"run.root={tmp_path}", "run.name=mine"]
    code, out, err = run(capsys, "train", *play, *asked)
    assert (code, err) == (130, "vla-rl: interrupted\n")
    assert out.splitlines()[-1] == f"to go on: vla-rl train resume={tmp_path / 'mine'}"
