"""Frames survive the way to another process unchanged."""

import torch
from tensordict import TensorDict

from vla_rl.learner.messages import flatten, pack, unflatten, unpack


def test_frames_come_back_as_they_were():
    frames = TensorDict(
        {
            "observation": TensorDict(
                {
                    "observation.state": torch.randn(2, 3),
                    "picture": torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
                },
                [2],
            ),
            "base_action": torch.randn(2, 1, 4)[:, :, ::2],  # not contiguous
            "final": torch.tensor([True, False]),
        },
        [2],
    )
    kind, tensors, fields = unpack(pack("frames", flatten(frames), rows=[1, 0]))
    assert (kind, fields) == ("frames", {"rows": [1, 0]})
    back = unflatten(tensors, 2)
    assert set(back.keys(True, True)) == set(frames.keys(True, True))
    for key in frames.keys(True, True):
        assert back[key].dtype == frames[key].dtype and torch.equal(back[key], frames[key])


def test_a_message_without_tensors():
    assert unpack(pack("save", folder="x")) == ("save", {}, {"folder": "x"})
