"""Progress learned from success and failure finds what does not lead to the goal, and cloning leaves it out."""

import pytest
import torch
from reach import Reach, Walk
from scipy.stats import spearmanr

from vla_rl.cli import main
from vla_rl.data.dataset import Episode
from vla_rl.data.progress import ProgressConfig, _targets, kept, learn, read_mask, write
from vla_rl.data.record import record
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE
from vla_rl.nn.categorical import mean_of, two_hot
from vla_rl.pretrain import PretrainConfig, Pretrainer

INPUTS = [STATE, ENV_STATE]
SHORT = ProgressConfig(steps=800, gamma=0.95, horizon=4)


def walk(generator, detour: bool, success: bool = True) -> tuple[Episode, torch.Tensor]:
    """A point that goes to the origin at 0.05 a step; on a detour it goes away from it for ten steps on the way."""
    place, path, wrong = torch.rand(2, generator=generator) + 0.5, [], []
    begin = int(torch.randint(3, 8, (1,), generator=generator)) if detour else 999
    for step in range(60):
        path.append(place)
        away = begin <= step < begin + 10
        wrong.append(away)
        heading = place / place.norm()
        place = place + (0.05 if away or not success else -0.05) * heading
        if success and place.norm() < 0.06:
            break
    count = len(path)
    flags = torch.zeros(count, dtype=torch.bool)
    won = flags.clone()
    won[-1] = success
    data = {"observation.state": torch.stack(path), "action": torch.zeros(count, 2), "next.success": won}
    data["next.truncated"] = flags.clone()
    data["next.truncated"][-1] = not success
    return Episode(0, "go to the origin", data), torch.tensor(wrong)


class Detour(Walk):
    """Goes the other way for three steps."""

    def act(self, observation, state, *, deterministic=False):
        output, after = super().act(observation, state)
        away = (state["steps"] >= 2) & (state["steps"] < 5)
        output["action"] = torch.where(away[:, None], -output["action"], output["action"])
        return output, after


@pytest.fixture(scope="module")
def walks():
    generator = torch.Generator().manual_seed(0)
    return [walk(generator, detour=i % 3 == 0, success=i % 5 != 4) for i in range(40)]


@pytest.fixture(scope="module")
def values(walks):
    return learn([e for e, _ in walks], SHORT)


def test_the_value_rises_towards_success(walks, values):
    for (episode, wrong), value in zip(walks, values, strict=True):
        if episode.success and not wrong.any():
            assert spearmanr(value, torch.arange(len(value))).statistic > 0.95
            assert value[-1] > 0.8
        assert value.min() >= 0 and value.max() <= 1


def test_planted_detours_are_found(walks, values):
    found = planted = right = 0
    for (episode, wrong), value in zip(walks, values, strict=True):
        if not episode.success:
            continue
        dropped = ~kept(value, SHORT.horizon, SHORT.drop)
        near = torch.nn.functional.max_pool1d(wrong[None, None].float(), 2 * 4 + 1, 1, 4)[0, 0] > 0
        found += int(dropped.sum())
        right += int((dropped & near).sum())
        planted += int(wrong.sum())
    assert right / found > 0.95  # precision
    assert right / planted > 0.8


def test_a_time_limit_is_no_failure():
    generator = torch.Generator().manual_seed(0)
    cut, _ = walk(generator, detour=False, success=False)
    lost, _ = walk(generator, detour=False, success=False)
    lost.data["next.truncated"][:] = False
    after, power, goal, unknown = _targets([cut, lost], 10)
    assert unknown.nonzero().flatten().tolist() == [59] and goal[:60].isnan().all()
    assert (goal[60 + 49 :] == 0).all() and goal[60:109].isnan().all()
    assert after[[0, 49, 55, 59, 60]].tolist() == [10, 59, 59, 59, 70]
    assert power[[0, 49, 55, 59, 60]].tolist() == [10, 10, 4, 0, 10]


def test_kept_looks_a_chunk_ahead():
    value = torch.tensor([0.5, 0.6, 0.4, 0.7, 0.7, 0.2])
    assert kept(value, 1, 0.05).tolist() == [True, False, True, True, False, True]
    assert kept(value, 3, 0.05).tolist() == [False, False, False, False, False, True]


def test_two_hot_keeps_the_mean():
    value = torch.tensor([0.0, 0.333, 0.5, 0.999, 1.0])
    assert torch.allclose(mean_of(two_hot(value, 11).clamp(min=1e-12).log()), value, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"), [({"gamma": 1.0}, "gamma=1.0"), ({"drop": -1.0}, "drop"), ({"bins": 1}, "bins=1")]
)
def test_bad_settings(walks, settings, words):
    with pytest.raises(UserError, match=words):
        learn([e for e, _ in walks], ProgressConfig(**settings))
    failed = [e for e, _ in walks if not e.success]
    with pytest.raises(UserError, match="some episodes that succeed"):
        learn(failed, SHORT)


def test_the_command_and_cloning_without_what_loses_progress(tmp_path, capsys):
    data = tmp_path / "reach"
    record(Reach(4), Detour(), 8, data, cameras=())
    out = tmp_path / "progress"
    assert main(["data", "progress", str(data), f"out={out}", "steps=150", "drop=0.001"]) == 0
    assert "lose progress" in capsys.readouterr().out
    mask = read_mask(out, [data])
    assert 0 < mask.sum() < len(mask)
    config = PretrainConfig(type="act", chunk_size=4, inputs=INPUTS, progress=str(out))
    assert len(Pretrainer(config, [data], tmp_path / "policy").starts) == int(mask.sum())
    with pytest.raises(UserError, match="exists"):
        write([data], SHORT, out)
    with pytest.raises(UserError, match="does not know the data set other"):
        read_mask(out, [tmp_path / "other"])
    assert main(["data", "progress", str(data), "out=x", "drp=1"]) == 2
    assert "did you mean drop" in capsys.readouterr().err
