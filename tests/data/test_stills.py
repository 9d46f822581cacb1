"""Stills: a few pictures of each of many scenes, as a data set that a warm start reads."""

import pytest
import torch

from sim.experts import expert
from sim.vector import make
from vla_rl.data.dataset import load_episodes
from vla_rl.data.stills import REEL, record_stills
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE
from vla_rl.pretrain_data import Samples

CAMERA = "observation.images.corner2"
TASKS = ["button-press-topdown-v3", "reach-v3"]


@pytest.fixture(scope="module")
def env():
    env = make(
        "sim.metaworld:MetaWorldEnv", ids=TASKS, num_envs=4, num_workers=0, cameras=["corner2"], image_size=32
    )
    yield env
    env.close()


def test_scenes_become_reels_of_stills_of_one_task(env, tmp_path):
    out, told = tmp_path / "scenes", []
    policy = expert(env, noise=0.5)
    summary = record_stills(env, policy, 70, out, stills=3, within=12, seed=60000, progress=told.append)
    assert summary["frames"] == 3 * 70 and told[-1] == 70
    episodes = load_episodes(out)
    assert [e.task_id for e in episodes] == TASKS + TASKS and summary["episodes"] == 4
    assert [e.length for e in episodes] == [3 * REEL, 3 * REEL, 9, 9]
    samples = Samples.read([out], [CAMERA], [ENV_STATE])
    assert samples.arrays[CAMERA].shape == (210, 3, 32, 32)
    # A still shows the scene of its seed: nothing has touched the button yet, each scene has its own.
    buttons = episodes[0].data[ENV_STATE][:, 4:7].unflatten(0, (REEL, 3))
    assert (buttons[:, :1] - buttons).abs().max() < 1e-3
    assert len(buttons[:, 0].unique(dim=0)) == REEL
    hands = episodes[0].data[ENV_STATE][:, :3].unflatten(0, (REEL, 3))
    assert ((hands[:, 0] - hands[:, 2]).norm(dim=1) > 0.005).all(), "the arm has moved in between"
    env.reset(seed=[60000] * 4)
    # The same command again is done at once.
    again = record_stills(env, policy, 70, out, stills=3, within=12, seed=60000)
    assert again["frames"] == summary["frames"]
    with pytest.raises(UserError, match="stills=3, not 2"):
        record_stills(env, policy, 70, out, stills=2, within=12, seed=60000)


def test_a_killed_recording_goes_on_with_the_reels_that_are_left(env, tmp_path, monkeypatch):
    out, policy = tmp_path / "scenes", expert(env, noise=0.5)
    whole = tmp_path / "whole"
    record_stills(env, policy, 140, whole, stills=2, within=6, seed=60000)

    def stop(done):
        if done >= 90:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record_stills(env, policy, 140, out, stills=2, within=6, seed=60000, progress=stop)
    begun = []
    record_stills(env, policy, 140, out, stills=2, within=6, seed=60000, progress=begun.append)
    assert begun[0] > REEL, "what was written before is not played again"
    for one, other in zip(load_episodes(whole), load_episodes(out), strict=True):
        assert torch.equal(one.data[ENV_STATE], other.data[ENV_STATE])


def test_bad_settings(env, tmp_path):
    with pytest.raises(UserError, match="stills=5 stills_within=3"):
        record_stills(env, expert(env), 4, tmp_path / "a", stills=5, within=3)
    blind = make("sim.metaworld:MetaWorldEnv", ids=["reach-v3"], num_envs=1, num_workers=0, cameras=[])
    with pytest.raises(UserError, match="stills are pictures: give the environment cameras"):
        record_stills(blind, expert(blind), 4, tmp_path / "b", stills=1, within=3)
    blind.close()
