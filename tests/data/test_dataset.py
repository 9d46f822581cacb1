"""Reading data sets, checking them against a policy, choosing episodes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from reach import CAMERA, Reach, Walk

from vla_rl.data import filters
from vla_rl.data.dataset import (
    Episode,
    check_dataset_for,
    dataset_info,
    decode_video,
    episode_tasks,
    load_episodes,
)
from vla_rl.data.encoder import encode_video
from vla_rl.data.record import record
from vla_rl.errors import UserError
from vla_rl.keys import ACTION, ENV_STATE, STATE
from vla_rl.policies.base import PolicySpec


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dataset") / "demos"
    record(Reach(4), Walk(0.05), 10, out)
    return out


def test_shapes_and_types(recorded: Path) -> None:
    episodes = load_episodes(recorded)
    assert len(episodes) == 10
    for episode in episodes:
        length = episode.length
        shapes = {key: (tuple(value.shape), value.dtype) for key, value in episode.data.items()}
        assert shapes == {
            STATE: ((length, 2), torch.float32),
            ENV_STATE: ((length, 2), torch.float32),
            CAMERA: ((length, 3, 32, 32), torch.uint8),
            ACTION: ((length, 2), torch.float32),
            "next.reward": ((length,), torch.float32),
            "next.success": ((length,), torch.bool),
            "next.done": ((length,), torch.bool),
            "next.truncated": ((length,), torch.bool),
        }
        assert episode.final[CAMERA].shape == (3, 32, 32)
    assert sum(episode_tasks(episodes).values()) == 10


def test_a_choice_of_episodes_and_cameras(recorded: Path) -> None:
    everything = load_episodes(recorded)
    some = load_episodes(recorded, episodes=[7, 2], images=[CAMERA])
    assert [e.index for e in some] == [7, 2]
    assert torch.equal(some[0].data[CAMERA], everything[7].data[CAMERA])
    assert CAMERA not in load_episodes(recorded, images=False)[0].data
    with pytest.raises(UserError, match=r"episode 10 is not in .*, which has 10"):
        load_episodes(recorded, episodes=[10])
    with pytest.raises(UserError, match=r"no camera observation.images.wrist; it has: observation.im"):
        load_episodes(recorded, images=["observation.images.wrist"])


def test_several_data_and_video_files(recorded: Path, tmp_path: Path, monkeypatch) -> None:
    """A long recording is cut into files; episodes are found in the right one."""
    monkeypatch.setattr("vla_rl.data.build.MAX_VIDEO_MB", 0.004)
    record(Reach(4), Walk(0.05), 10, tmp_path / "x")
    assert len(list((tmp_path / "x").rglob("*.mp4"))) > 3
    for a, b in zip(load_episodes(recorded), load_episodes(tmp_path / "x"), strict=True):
        assert torch.equal(a.data[CAMERA], b.data[CAMERA])


def test_video_quality(tmp_path: Path) -> None:
    """A small saturated object keeps its colour (4:2:0 would wash it out); every frame is there."""
    frames = []
    for t in range(30):
        frame = np.full((96, 96, 3), 120, np.uint8)
        frame[40:43, t : t + 3] = (220, 30, 30)
        frames.append(frame)
    encode_video(tmp_path / "v.mp4", frames, 20)
    back = decode_video(tmp_path / "v.mp4").permute(0, 2, 3, 1).numpy().astype(float)
    assert back.shape == (30, 96, 96, 3)
    for t in range(30):
        assert abs(back[t, 41, t + 1] - frames[t][41, t + 1]).max() < 25
    assert abs(back - np.stack(frames)).mean() < 2
    assert (tmp_path / "v.mp4").stat().st_size < 30 * 1500


def test_check_dataset_names_key_and_remedy(recorded: Path, tmp_path: Path) -> None:
    spec = PolicySpec(action_dim=2, image_keys=(CAMERA,))
    assert check_dataset_for(spec, recorded, {STATE: 2})["fps"] == 20
    for changed, dims, match in (
        (PolicySpec(action_dim=7), {}, r"action in .* has shape \(2,\), the policy needs \(7,\): record"),
        (PolicySpec(2, state_keys=("observation.effort",)), {}, "no key observation.effort.* it has: observ"),
        (PolicySpec(2, image_keys=("observation.images.wrist",)), {}, "no camera observation.images.wrist"),
        (PolicySpec(2, rate_hz=50.0), {}, "recorded at 20 Hz, the policy needs 50.0 Hz"),
        (PolicySpec(2), {STATE: 9}, r"observation.state in .* has shape \(2,\)"),
    ):
        with pytest.raises(UserError, match=match):
            check_dataset_for(changed, recorded, dims)
    with pytest.raises(UserError, match="is not a LeRobotDataset"):
        check_dataset_for(spec, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_versions_are_refused(recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded, tmp_path / "x")
    file = tmp_path / "x" / "meta" / "info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"codebase_version": "v2.1"}))
    with pytest.raises(UserError, match=r"LeRobotDataset v2.1, not v3: convert it"):
        dataset_info(tmp_path / "x")


def test_a_stock_dataset_with_still_images_and_no_outcome(tmp_path: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {
        STATE: {"dtype": "float32", "shape": (2,), "names": None},
        CAMERA: {"dtype": "image", "shape": (8, 8, 3), "names": ["height", "width", "channels"]},
        ACTION: {"dtype": "float32", "shape": (1,), "names": None},
    }
    stock = LeRobotDataset.create("local/x", 10, features, root=tmp_path / "x", use_videos=False)
    images = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3), np.uint8)
    for t in range(5):
        frame = {STATE: np.full(2, t, np.float32), CAMERA: images[t], ACTION: np.full(1, t, np.float32)}
        stock.add_frame(frame | {"task": "go"})
    stock.save_episode()
    stock.finalize()
    (episode,) = load_episodes(tmp_path / "x")
    assert np.array_equal(episode.data[CAMERA].permute(0, 2, 3, 1).numpy(), images)
    assert episode.data[ACTION].shape == (5, 1)
    assert (episode.success, episode.seed, episode.task, episode.final) == (None, None, "go", {})


def test_filters(recorded: Path) -> None:
    episodes = load_episodes(recorded, images=False)
    good = filters.successes(episodes)
    assert 0 < len(good) < 10 and all(e.success for e in good)
    short = filters.shortest(episodes, 3)
    assert [e.index for e in short] == sorted(e.index for e in short)
    assert max(e.length for e in short) <= sorted(e.length for e in episodes)[2]
    per_task = filters.shortest(episodes, 1, per_task=True)
    assert len(per_task) == len(episode_tasks(episodes))
    train, held = filters.split(episodes, 0.3, seed=1)
    assert {e.index for e in train} | {e.index for e in held} == set(range(10)) and 2 <= len(held) <= 4
    assert [e.index for e in filters.split(episodes, 0.3, seed=1)[1]] == [e.index for e in held]
    state = torch.tensor([[0.0, 0], [0, 0], [0, 0.5], [0, 0.5], [0, 0.5]])
    still = Episode(0, "go", {STATE: state, ACTION: torch.arange(5.0)[:, None]})
    assert filters.drop_idle(still).data[ACTION].flatten().tolist() == [1.0, 4.0]
    with pytest.raises(UserError, match="no next.success"):
        filters.successes([still])
