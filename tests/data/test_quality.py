"""Quality of data sets: closed forms, and the order that one expects."""

import json

import pytest
import torch
from reach import Reach, Walk

from vla_rl.cli import main
from vla_rl.data.dataset import Episode
from vla_rl.data.quality import _quality, compare
from vla_rl.data.record import record
from vla_rl.errors import UserError
from vla_rl.keys import ACTION, STATE


class Shaky(Walk):
    """The expert with a tremor."""

    def act(self, observation, state, *, deterministic=False):
        output, state = super().act(observation, state)
        output["action"] += 0.06 * torch.randn(output["action"].shape)
        return output, state


def episode(path, task="go"):
    return Episode(0, task, {STATE: path, ACTION: torch.zeros(len(path), 1)})


def quality(*paths, rate=10.0):
    one = torch.ones(1)
    return _quality([episode(p) for p in paths], one, one, rate, 1.0)


def test_jerk_of_a_cubic_is_six_times_its_factor():
    t = torch.arange(20, dtype=torch.float64)[:, None] / 10
    assert quality(2 * t**3).jerk == pytest.approx((6 * 2) ** 2, rel=1e-4)
    assert quality(3 * t**2).jerk == pytest.approx(0, abs=1e-6)


def test_path_length_and_variance_by_hand():
    t = torch.linspace(0, 1, 11)[:, None]
    both = quality(t, t + 1)
    assert both.path == pytest.approx(1.0) and both.variance == pytest.approx(0.25) and both.length == 11
    # The same path at another speed is the same at equal phase.
    assert quality(t, torch.linspace(0, 1, 41)[:, None]).variance == pytest.approx(0, abs=1e-9)


def test_noisier_demonstrations_are_less_smooth(tmp_path, capsys):
    torch.manual_seed(0)
    for name, who in (("calm", Walk(0.05)), ("noisy", Shaky(0.05))):
        record(Reach(4), who, 12, tmp_path / name)
    calm, noisy = compare([tmp_path / "calm", tmp_path / "noisy"])
    assert noisy.jerk > 2 * calm.jerk and noisy.action_jerk > 2 * calm.action_jerk
    assert 0 < calm.coverage <= 1 and calm.success is not None
    out = tmp_path / "quality.json"
    assert main(["data", "compare", str(tmp_path / "calm"), str(tmp_path / "noisy"), f"json={out}"]) == 0
    assert json.loads(out.read_text())[str(tmp_path / "noisy")]["jerk"] == noisy.jerk
    assert "jerk" in capsys.readouterr().out


def test_what_cannot_be_compared(tmp_path, capsys):
    with pytest.raises(UserError, match="not a LeRobotDataset"):
        compare([tmp_path])
    assert main(["data"]) == 2 and "compare DIR" in capsys.readouterr().err
    assert (
        main(["data", "compare", "x=1"]) == 2 and "x=1: vla-rl data compare takes" in capsys.readouterr().err
    )
