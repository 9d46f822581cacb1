"""Two programs by turns: rates come from processes of their own, and one that dies is told with its last line."""

import json
from types import SimpleNamespace

import pytest

from vla_rl.bench.ray import steady
from vla_rl.bench.sides import Side, compared, environment, keep
from vla_rl.errors import UserError

TD3 = {
    "state": 5,
    "actions": 2,
    "frames": 300,
    "batch_size": 16,
    "critics": 3,
    "hidden": [16],
    "critic_updates": 0,
}
SAC = {
    "state": 5,
    "actions": 2,
    "frames": 40,
    "batch_size": 16,
    "critics": 3,
    "hidden": [16],
    "subset": 2,
    "actor_every": 2,
}
REPLAY = {"frames": 200, "batch_size": 16, "cameras": 2, "size": 24, "episode": 20}


def both(tmp_path, ours, peer):
    sides = [Side(*ours, tmp_path / "ours.log"), Side(*peer, tmp_path / "peer.log")]
    try:
        return compared("row", "updates/s", *sides, count=4, rounds=2)
    finally:
        for side in sides:
            side.close()
            assert side.process.poll() is not None


def test_our_learner_against_lerobots(tmp_path):
    row = both(tmp_path, ("vla_rl_td3", TD3), ("lerobot_sac", SAC))
    assert row["name"] == "row" and row["ours"] > 0 and row["peer"] > 0
    assert row["ratio95"][0] <= row["ratio"] <= row["ratio95"][1]


def test_our_learner_against_torchrls(tmp_path):
    row = both(tmp_path, ("vla_rl_td3", TD3), ("torchrl_td3", SAC))
    assert row["ours"] > 0 and row["peer"] > 0


def test_our_ppo_does_its_updates(tmp_path):
    sizes = {
        "state": 5,
        "actions": 2,
        "hidden": [16],
        "decisions": 96,
        "epochs": 2,
        "batch_size": 24,
    }
    side = Side("vla_rl_ppo", sizes, tmp_path / "ours.log")
    side.seconds(2)
    few, many = side.seconds(2), side.seconds(20)
    side.close()
    assert 0 < 2 * few < many, "as many iterations as it is told"


def test_our_replay_against_torchrls(tmp_path):
    row = both(tmp_path, ("vla_rl_replay", REPLAY), ("torchrl_replay", REPLAY | {"storage": "default"}))
    assert row["ours"] > 0 and row["peer"] > 0


def test_a_side_that_cannot_start_is_told_with_its_last_line(tmp_path):
    with pytest.raises(UserError, match=r"vla_rl_td3 .* see .*side.log: .*crtics"):
        Side("vla_rl_td3", TD3 | {"crtics": 3}, tmp_path / "side.log")


def test_an_environment_that_cannot_be_made_is_told_and_not_taken_for_one(tmp_path):
    for _ in range(2):
        with pytest.raises(UserError, match="cannot install a peer"):
            environment("peer", ["./no-such-folder-here"], tmp_path)


def test_a_rate_counts_what_lies_between_two_moments_at_which_all_play():
    rows = [
        {"step": 100, "seconds": 5.0, "collected_0": 100, "collected_1": 0},
        {"step": 300, "seconds": 10.0, "collected_0": 200, "collected_1": 100},
        {"step": 700, "seconds": 20.0, "collected_0": 400, "collected_1": 300},
        {"step": 700, "seconds": 60.0, "collected_0": 400, "collected_1": 300},
    ]
    assert steady(rows, 50) == 40.0
    with pytest.raises(UserError, match=r"more run\.steps"):
        steady(rows, 500)


def test_rows_that_were_not_measured_again_stay(tmp_path):
    config = SimpleNamespace(json=str(tmp_path / "rows.json"))
    keep(config, [{"name": "a", "ours": 1}, {"name": "b", "ours": 2}])
    keep(config, [{"name": "b", "ours": 3}, {"name": "c", "ours": 4}])
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["name"], row["ours"]) for row in rows] == [("a", 1), ("b", 3), ("c", 4)]
