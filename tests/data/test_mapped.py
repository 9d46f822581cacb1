"""Frames of a replay in files: the same samples as from memory, small checkpoints, and nothing wrong after a kill."""

import os
import subprocess
import sys

import pytest
import torch
from test_replay import frames

from vla_rl.data.replay import ReplayBuffer
from vla_rl.errors import UserError


def fill(buffer, stamps):
    for stamp in stamps:
        buffer.append(frames([stamp, 100 + stamp], image=True), torch.tensor([0, 1]))


def sampled(buffer, count=200):
    return buffer.sample(count, 2, 0.9, torch.Generator().manual_seed(3))


def stamps_of(batch):
    return set(batch["action"][:, 0].sub(0.25).int().tolist())


def test_samples_are_those_from_memory(tmp_path):
    mapped, plain = ReplayBuffer(24, 2, folder=tmp_path / "replay"), ReplayBuffer(24, 2)
    for buffer in (mapped, plain):
        fill(buffer, range(17))  # wraps
    assert (sampled(mapped) == sampled(plain)).all()
    assert type(sampled(mapped)["action"]) is torch.Tensor
    assert (mapped.interventions() == plain.interventions()).all()


def test_a_checkpoint_copies_no_frame_and_is_gone_on_with(tmp_path):
    buffer = ReplayBuffer(60, 2, folder=tmp_path / "replay")
    fill(buffer, range(17))
    buffer.save(tmp_path / "checkpoint")
    in_memory = ReplayBuffer(60, 2)
    fill(in_memory, range(17))
    in_memory.save(tmp_path / "whole")
    size, whole = ((tmp_path / f / "replay.safetensors").stat().st_size for f in ("checkpoint", "whole"))
    assert size < whole / 2
    expected = sampled(buffer)
    fill(buffer, range(40, 45))  # after the checkpoint, lost with the process
    del buffer
    again = ReplayBuffer(60, 2, folder=tmp_path / "replay")
    again.load(tmp_path / "checkpoint")
    assert (sampled(again) == expected).all()
    fill(again, range(17, 20)), fill(in_memory, range(17, 20))
    assert (sampled(again) == sampled(in_memory)).all()


@pytest.mark.parametrize("more", [1, 5, 30])
def test_what_was_written_over_after_a_checkpoint_is_never_sampled(tmp_path, more):
    def begin():
        again = ReplayBuffer(24, 2, folder=tmp_path / "replay")
        again.load(tmp_path / "checkpoint")
        return again

    buffer = ReplayBuffer(24, 2, folder=tmp_path / "replay")
    fill(buffer, range(20))  # holds 8 to 19
    buffer.save(tmp_path / "checkpoint")
    fill(buffer, range(50, 50 + more))
    left = set(range(8 + more, 19))  # the newest one's outcome is not known yet
    for _ in range(2):  # killed again before anything was written
        again = begin()
        if left:
            assert stamps_of(sampled(again)) == left | {s + 100 for s in left}
        else:
            with pytest.raises(UserError, match="holds no complete transition"):
                sampled(again)
    fill(again, range(20, 32))
    assert stamps_of(sampled(again)) == {*range(20, 31), *range(120, 131)}


def test_a_kill_loses_nothing_that_a_checkpoint_knows(tmp_path):
    program = """
import os, sys, signal, pathlib
sys.path.insert(0, sys.argv[1])
from test_mapped import ReplayBuffer, fill
root = pathlib.Path(sys.argv[2])
buffer = ReplayBuffer(60, 2, folder=root / "replay")
fill(buffer, range(12))
buffer.save(root / "checkpoint")
fill(buffer, range(12, 15))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, os.path.dirname(__file__), str(tmp_path)], check=False
    )
    assert done.returncode == -9
    again, plain = ReplayBuffer(60, 2, folder=tmp_path / "replay"), ReplayBuffer(60, 2)
    again.load(tmp_path / "checkpoint")
    fill(plain, range(12))
    assert (sampled(again) == sampled(plain)).all()


def test_folders_that_do_not_fit_are_refused(tmp_path):
    buffer = ReplayBuffer(24, 2, folder=tmp_path / "replay")
    fill(buffer, range(3))
    buffer.save(tmp_path / "checkpoint")
    with pytest.raises(UserError, match="holds the frames of another run"):
        fill(ReplayBuffer(24, 2, folder=tmp_path / "replay"), range(3))
    with pytest.raises(UserError, match=r"was kept in files: leave algorithm\.replay_path as it was"):
        ReplayBuffer(24, 2).load(tmp_path / "checkpoint")
    with pytest.raises(UserError, match="cannot read the replay's frames"):
        ReplayBuffer(24, 2, folder=tmp_path / "elsewhere").load(tmp_path / "checkpoint")
    ReplayBuffer(24, 2, folder=tmp_path / "empty").save(tmp_path / "nothing")
    ReplayBuffer(24, 2, folder=tmp_path / "empty").load(tmp_path / "nothing")
