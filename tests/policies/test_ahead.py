"""Imports beside the start of simulators."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny

SCRIPT = """
import sys
from omegaconf import OmegaConf
from vla_rl.policies.ahead import importing_ahead
workers, path = int(sys.argv[1]), sys.argv[2]
config = OmegaConf.create({"env": {"num_workers": workers}, "policy": {"path": path}})
with importing_ahead(config):
    pass
print("lerobot.policies.act.modeling_act" in sys.modules)
"""


@pytest.fixture(scope="module")
def act(tmp_path_factory):
    return tiny.reach_base(tmp_path_factory.mktemp("base") / "act")


@pytest.mark.parametrize(("workers", "there"), [(2, True), (0, False)])
def test_the_policys_class_is_there_when_the_environments_are(act, workers, there):
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(workers), str(act)], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == str(there)


def test_what_is_wrong_with_a_policy_is_told_by_whoever_loads_it(tmp_path: Path):
    (tmp_path / "config.json").write_text("{")
    for path in (tmp_path, tmp_path / "none"):
        done = subprocess.run([sys.executable, "-c", SCRIPT, "2", str(path)], capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr
