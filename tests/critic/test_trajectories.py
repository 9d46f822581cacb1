"""Recorded data sets as a critic reads them, and scores that ``vla-rl pretrain`` takes."""

import errno
import json
import os

import pytest
import tiny
import torch
from films import film
from reach import CAMERA, Reach, Walk

from vla_rl.critic.model import Critic
from vla_rl.critic.pairs import PairConfig, Pairs
from vla_rl.critic.score import score
from vla_rl.critic.train import CriticConfig, CriticTrainer
from vla_rl.critic.trajectories import check_sizes, read_trajectories
from vla_rl.data.dataset import load_episodes
from vla_rl.data.progress import read_mask
from vla_rl.data.record import record
from vla_rl.data.unnamed import unnamed
from vla_rl.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "reach"
    record(Reach(3), Walk(0.06), 6, out, seed=3)
    return out


@pytest.fixture(scope="module")
def critic(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("critic")
    start = tiny.tiny_token(place / "start")
    size = {"steps": 1, "batch_size": 2, "held_out": 0.0, "pairs": PairConfig(skip=3, references=2)}
    trajectories = read_trajectories([folder])
    # Pictures of 32 pixels are enlarged by the network to what its vision tower takes.
    CriticTrainer(CriticConfig(start=str(start), **size), trajectories, place / "critic").learn()
    return Critic.load(place / "critic")


def test_every_picture_with_the_one_after_the_last_action(folder):
    episodes, found = load_episodes(folder), read_trajectories([folder])
    assert len(found) == 6
    for episode, each in zip(episodes, found, strict=True):
        assert len(each) == episode.length + 1 and each.steps == episode.length and each.task == episode.task
        assert torch.equal(each.pictures[:-1], episode.data[CAMERA]) and torch.equal(
            each.pictures[-1], episode.final[CAMERA]
        )
        assert each.success == episode.success
        if each.success:  # the success of the last action is seen in the picture after it
            assert each.succeeded.tolist() == [False] * episode.length + [True] and each.end == episode.length


@pytest.mark.parametrize("stride", [1, 3])
def test_pictures_on_disk_are_those_in_memory_and_leave_nothing_behind(folder, tmp_path, stride):
    kept = read_trajectories([folder], stride=stride)
    mapped = read_trajectories([folder], stride=stride, scratch=tmp_path)
    assert not list(tmp_path.iterdir()), "their files have lost their names"
    for one, other in zip(kept, mapped, strict=True):
        assert torch.equal(one.pictures, other.pictures) and torch.equal(one.succeeded, other.succeeded)
    draws = [
        Pairs(each, PairConfig(skip=3, references=2), torch.Generator().manual_seed(0)).frames
        for each in (kept, mapped)
    ]
    together = torch.cat([each.pictures for each in kept])
    index = torch.tensor([[0, len(together) - 1, 5], [len(kept[0]), len(kept[0]) - 1, 5]])
    for frames in draws:
        assert len(frames) == len(together) and torch.equal(frames[index], together[index])


def test_a_full_disk_is_said_before_anything_is_mapped(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="no space left"):
        unnamed(tmp_path, (10, 3, 8, 8))
    assert not list(tmp_path.iterdir())


def test_fewer_pictures_keep_the_first_and_the_last(folder):
    full, thin = read_trajectories([folder])[0], read_trajectories([folder], stride=4)[0]
    assert torch.equal(thin.pictures[-1], full.pictures[-1]) and torch.equal(
        thin.pictures[0], full.pictures[0]
    )
    assert len(thin) <= len(full) // 4 + 2 and thin.success == full.success


def test_bad_data(folder, tmp_path):
    with pytest.raises(UserError, match="has no camera wrist; it has: top"):
        read_trajectories([folder], "wrist")
    with pytest.raises(UserError, match="stride=0 must be at least 1"):
        read_trajectories([folder], stride=0)
    with pytest.raises(UserError, match="is not a LeRobotDataset"):
        read_trajectories([tmp_path])
    with pytest.raises(UserError, match="names no data set"):
        read_trajectories([])
    with pytest.raises(UserError, match="has pictures of .32, 32."):
        check_sizes([film(0), read_trajectories([folder])[0]])


def test_scores_are_the_mask_that_pretraining_reads(folder, critic, tmp_path):
    out = tmp_path / "scores"
    found = score(critic, [folder], out, least_voc=-1.0, least_done=0.0, drop=2.0)
    assert len(found) == 6 and all(s.kept for s in found)
    mask = read_mask(out, [folder])
    assert mask.all() and len(mask) == sum(e.length for e in load_episodes(folder, images=False))
    score(critic, [folder], tmp_path / "strict", least_voc=1.1)
    assert not read_mask(tmp_path / "strict", [folder]).any()
    assert len(json.loads((tmp_path / "strict" / "progress.json").read_text())["episodes"]) == 6
    with pytest.raises(UserError, match="exists: choose another out"):
        score(critic, [folder], out)


def test_a_critic_that_says_the_same_to_everything_is_reported(folder, critic, tmp_path, monkeypatch):
    nothing = torch.zeros(1, critic.bins)
    nothing[:, critic.bins // 2 - 1 : critic.bins // 2 + 1] = 50.0  # zero progress, whatever it sees
    monkeypatch.setattr(
        critic.network, "answer", lambda seen, words, mask, before=None: nothing.expand(len(seen), -1)
    )
    with pytest.raises(UserError, match="says the same to every picture"):
        score(critic, [folder], tmp_path / "x")
    assert not (tmp_path / "x").exists()
