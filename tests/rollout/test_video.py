import av
import numpy as np
import pytest
import torch

from vla_rl.errors import UserError
from vla_rl.rollout.video import (
    BORDER,
    GREEN,
    GREY,
    HOLD,
    RED,
    STRIP,
    VideoWriter,
    before_after,
    codec_name,
    grid,
    label_strip,
    save_mp4,
)


def clip(length, size=(64, 64), level=40):
    """Pictures whose brightness grows with time: order and number can be checked after decoding."""
    return [torch.full((3, *size), level + 5 * t, dtype=torch.uint8) for t in range(length)]


def decode(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return frames, stream


def test_what_is_written_is_what_is_shown(tmp_path):
    path = save_mp4(clip(12), tmp_path / "deep" / "one.mp4", fps=20)
    frames, stream = decode(path)
    assert len(frames) == 12 and frames[0].shape == (192, 192, 3), "64 px is enlarged threefold"
    assert stream.average_rate == 20 and stream.codec_context.pix_fmt == "yuv420p"
    for t, frame in enumerate(frames):
        assert abs(float(frame.mean()) - (40 + 5 * t)) < 4
    assert [p.name for p in path.parent.iterdir()] == ["one.mp4"]


def test_codec_is_one_that_browsers_play():
    assert codec_name() in ("libx264", "libopenh264", "h264", "mpeg4")


@pytest.mark.parametrize("size", [(193, 201), (192, 193), (240, 320), (65, 97)])
def test_odd_sides_lose_no_pixel(tmp_path, size):
    frames, _ = decode(save_mp4(clip(3, size), tmp_path / "odd.mp4", fps=10))
    factor = max(1, -(-192 // min(size)))
    height, width = size[0] * factor, size[1] * factor
    assert frames[0].shape == (height + height % 2, width + width % 2, 3)


def test_arrays_and_one_tensor_are_taken_too(tmp_path):
    stacked = torch.stack(clip(4))
    first, _ = decode(save_mp4(stacked, tmp_path / "a.mp4", 10))
    second, _ = decode(save_mp4([f.permute(1, 2, 0).numpy() for f in clip(4)], tmp_path / "b.mp4", 10))
    assert np.array_equal(np.stack(first), np.stack(second))


def test_fractional_rates(tmp_path):
    _, stream = decode(save_mp4(clip(5), tmp_path / "slow.mp4", fps=12.5))
    assert float(stream.average_rate) == 12.5


def test_an_error_leaves_the_old_file_and_nothing_partial(tmp_path):
    path = tmp_path / "one.mp4"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="inside"), VideoWriter(path, 10) as video:
        video.add(clip(1)[0])
        raise RuntimeError("inside")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "frames, said",
    [
        ([], "at least one frame"),
        ([torch.zeros(3, 64, 64)], "must be uint8"),
        ([torch.zeros(1, 64, 64, dtype=torch.uint8)], "3 colours"),
        ([*clip(1, (64, 64)), *clip(1, (32, 32))], "use one size"),
    ],
)
def test_what_cannot_be_a_video(tmp_path, frames, said):
    with pytest.raises(UserError, match=said):
        save_mp4(frames, tmp_path / "one.mp4", 10)
    assert list(tmp_path.iterdir()) == []


def test_grid_frames_by_success_and_holds_the_last_picture():
    out = grid(
        [clip(3), clip(6), clip(2), clip(4)], ["a", "b", "c", "d"], [True, False, None, True], columns=3
    )
    cell_h, cell_w = 192 + STRIP + 2 * BORDER, 192 + 2 * BORDER
    assert len(out) == 6 + HOLD and out[0].shape == (2 * cell_h, 3 * cell_w, 3)
    corners = [tuple(out[0][y, x]) for y, x in ((0, 0), (0, cell_w), (0, 2 * cell_w), (cell_h, 0))]
    assert corners == [GREEN, RED, GREY, GREEN]
    assert tuple(out[0][-1, -1]) == (255, 255, 255), "an empty place is white"
    middle = (STRIP + 2 * BORDER + 96, cell_w // 2)
    assert [out[t][middle][0] for t in (0, 2, 9)] == [40, 50, 50]


def test_grid_takes_fewer_videos_than_columns_and_refuses_none():
    assert grid([clip(1)], ["a"], [True])[0].shape[1] == 192 + 2 * BORDER
    with pytest.raises(UserError, match="at least one video"):
        grid([], [], [])
    with pytest.raises(UserError, match="'empty' has no frames"):
        grid([[]], ["empty"], [True])
    with pytest.raises(ValueError):
        grid([clip(1)], ["a", "b"], [True])


def test_the_outcome_is_said_in_words_even_under_a_long_name():
    def strip(won):
        return grid([clip(1)], ["x" * 200], [won])[0][BORDER : BORDER + STRIP]

    assert not np.array_equal(strip(True), strip(False))
    assert np.array_equal(label_strip("short", 192), label_strip("short", 192, tail=""))
    wide = label_strip("x" * 200, 192, tail=" - success")
    assert (wide[:, -3:] == wide[0, 0]).all(), "nothing is cut at the right edge"


def test_before_after_side_by_side(tmp_path):
    left = grid([clip(2)], ["a"], [False])
    right = grid([clip(5), clip(5)], ["a", "b"], [True, True])
    out = before_after(left, right)
    assert len(out) == max(len(left), len(right))
    assert out[0].shape == (left[0].shape[0] + 28, left[0].shape[1] + right[0].shape[1] + 12, 3)
    assert np.array_equal(out[-1][28:, : left[0].shape[1]], left[-1])
    assert np.array_equal(out[-1][28:, -right[0].shape[1] :], right[-1])
    frames, _ = decode(save_mp4(out, tmp_path / "both.mp4", 20))
    assert len(frames) == len(out)
