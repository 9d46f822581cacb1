"""Videos that play anywhere, written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vla_rl.errors import UserError

GREEN, RED, GREY = (46, 160, 67), (207, 34, 46), (110, 119, 129)
INK, PAPER = (31, 35, 40), (246, 248, 250)
MIN_SIDE = 192
"""Frames smaller than this are enlarged (whole factors, nearest), so that 96 px can be watched."""

BORDER, STRIP = 4, 20
"""Width of the coloured frame and height of the label's strip, pixels."""

HOLD = 8
"""Pictures that a grid stands still for at its end."""

Picture = Tensor | np.ndarray
"""A tensor [3, H, W] uint8, or an array [H, W, 3] uint8."""

Frames = Sequence[Tensor] | Sequence[np.ndarray] | Tensor
"""T pictures; a tensor [T, 3, H, W] uint8 as well."""


def _array(frame: Picture) -> np.ndarray:
    """A picture as [H, W, 3] uint8."""
    array = frame.detach().cpu().numpy().transpose(1, 2, 0) if isinstance(frame, Tensor) else frame
    if array.ndim != 3 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise UserError(
            f"a video frame is {array.dtype} {array.shape} (height, width, colours): it must be uint8 with 3 colours"
        )
    return np.ascontiguousarray(array)


def _enlarged(array: np.ndarray) -> np.ndarray:
    factor = max(1, -(-MIN_SIDE // min(array.shape[:2])))
    return array if factor == 1 else np.ascontiguousarray(array.repeat(factor, 0).repeat(factor, 1))


@lru_cache(maxsize=1)
def codec_name() -> str:
    """The best encoder that PyAV was built with.

    Raises:
        UserError: it has none that browsers play.
    """
    import av

    for name in ("libx264", "libopenh264", "h264", "mpeg4"):
        try:
            av.codec.Codec(name, "w")
            return name
        except Exception:
            continue
    raise UserError("PyAV has no H.264 or MPEG-4 encoder: reinstall the av package")


class VideoWriter:
    """Writes an mp4 picture by picture; the file appears when the block ends well, not before.

    ``with VideoWriter(path, fps=20) as video: video.add(frame)``

    Args:
        path: the file; its folder is made.
        fps: pictures per second.
        quality: libx264's rate factor, lower is better and larger.

    Raises:
        UserError: no picture was added, sizes differ, or the disk is full.
    """

    def __init__(self, path: Path, fps: float, quality: int = 26) -> None:
        self.path, self.fps, self.quality = Path(path), fps, quality
        self._temporary = self.path.with_name(f".{self.path.name}.tmp.mp4")
        self._container: Any = None
        self._stream: Any = None
        self._shape: tuple[int, ...] = ()

    def __enter__(self) -> VideoWriter:
        return self

    def add(self, frame: Picture) -> None:
        """Append a picture, [3, H, W] uint8 tensor or [H, W, 3] uint8 array, all of one size."""
        import av

        array = _array(frame)
        if self._container is None:
            self._begin(array.shape)
        elif array.shape != self._shape:
            raise UserError(
                f"{self.path}: a frame is {array.shape}, the first was {self._shape}: use one size"
            )
        # 4:2:0 colour needs even sides: the last row or column is repeated rather than lost.
        array = _enlarged(array)
        odd = [(0, array.shape[0] % 2), (0, array.shape[1] % 2), (0, 0)]
        array = np.pad(array, odd, mode="edge") if any(n for _, n in odd) else array
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))

    def _begin(self, shape: tuple[int, ...]) -> None:
        import av

        self._shape = shape
        factor = max(1, -(-MIN_SIDE // min(shape[:2])))
        height, width = shape[0] * factor, shape[1] * factor
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # faststart: the index first, so that a browser can begin before it has all.
        self._container = av.open(str(self._temporary), "w", options={"movflags": "+faststart"})
        stream: Any = self._container.add_stream(
            codec_name(), rate=Fraction(self.fps).limit_denominator(1000)
        )
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        if codec_name() == "libx264":
            stream.options = {"crf": str(self.quality), "preset": "fast"}
        # One thread: encoding runs beside simulator workers that own the cores.
        stream.codec_context.thread_count = 1
        self._stream = stream

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        from vla_rl.runtime.checkpoints import is_full

        try:
            if self._container is not None:
                if kind is None:
                    self._container.mux(self._stream.encode())
                    self._container.close()
                else:
                    with suppress(Exception):  # the error on its way says more
                        self._container.close()
            if kind is None:
                if self._container is None:
                    raise UserError(f"{self.path}: a video needs at least one frame")
                self._temporary.replace(self.path)
        except OSError as error:
            if not is_full(error):
                raise
            raise UserError(f"no space left for {self.path}: free some") from error
        finally:
            self._temporary.unlink(missing_ok=True)


def save_mp4(frames: Frames | Iterable[Picture], path: Path, fps: float) -> Path:
    """Write an mp4.

    Args:
        frames: T pictures [3, H, W] uint8 tensors, or [H, W, 3] uint8 arrays; small ones are enlarged.
        path: file; written under another name and renamed.
        fps: frames per second.
    """
    with VideoWriter(path, fps) as video:
        for frame in frames:
            video.add(frame)
    return Path(path)


@lru_cache(maxsize=8)
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def label_strip(text: str, width: int, height: int = STRIP, size: int = 12, tail: str = "") -> np.ndarray:
    """A line of text [height, width, 3] uint8; where it does not fit, ``text`` is shortened, never ``tail``."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, height), PAPER)
    draw, font = ImageDraw.Draw(image), _font(size)
    whole = text + tail
    while text and draw.textlength(whole, font) > width - 8:
        text = text[:-1]
        whole = f"{text}...{tail}"
    draw.text((4, height // 2), whole, font=font, fill=INK, anchor="lm")
    return np.asarray(image)


def _outcome(won: bool | None) -> str:
    return "" if won is None else " - success" if won else " - failure"


def grid(
    videos: Sequence[Frames], labels: Sequence[str], success: Sequence[bool | None], columns: int = 3
) -> list[np.ndarray]:
    """Several videos side by side, each with its label and a frame: green success, red failure, grey neither.

    The outcome also stands in words, for those who cannot tell the colours. Shorter videos hold their last picture.

    Args:
        videos: of any lengths, pictures of one size.
        labels: one per video.
        success: one per video; None = not known.
        columns: per row.

    Returns:
        T arrays [H, W, 3] uint8.
    """
    if not len(videos):
        raise UserError("a grid of videos needs at least one video")
    columns = min(columns, len(videos))
    cells = [_cell(v, label, won) for v, label, won in zip(videos, labels, success, strict=True)]
    length = max(len(cell) for cell in cells)
    blank = np.full_like(cells[0][0], 255)
    out = []
    for t in range(length + HOLD):
        row_images = []
        for first in range(0, len(cells), columns):
            row = [cell[min(t, len(cell) - 1)] for cell in cells[first : first + columns]]
            row += [blank] * (columns - len(row))
            row_images.append(np.concatenate(row, axis=1))
        out.append(np.concatenate(row_images, axis=0))
    return out


def _cell(frames: Frames, label: str, won: bool | None) -> list[np.ndarray]:
    """One video with label strip and coloured frame."""
    colour = GREY if won is None else GREEN if won else RED
    out: list[np.ndarray] = []
    strip: np.ndarray | None = None
    for frame in frames:
        image = _enlarged(_array(frame))
        if strip is None:
            strip = label_strip(label, image.shape[1], tail=_outcome(won))
        image = np.concatenate([strip, image], axis=0)
        height, width = image.shape[0] + 2 * BORDER, image.shape[1] + 2 * BORDER
        framed = np.empty((height, width, 3), np.uint8)
        framed[:] = colour
        framed[BORDER:-BORDER, BORDER:-BORDER] = image
        out.append(framed)
    if not out:
        raise UserError(f"the video '{label}' has no frames")
    return out


def before_after(
    before: Sequence[np.ndarray], after: Sequence[np.ndarray], titles: tuple[str, str] = ("before", "after")
) -> list[np.ndarray]:
    """Two videos side by side under their titles, the shorter holding its last picture.

    Args:
        before: T1 arrays [H, W, 3] uint8, as ``grid`` gives.
        after: T2 arrays [H, W', 3] uint8.
        titles: of the two halves.

    Returns:
        max(T1, T2) arrays [H + 28, W + W' + 12, 3] uint8.
    """
    sides = [[_array(f) for f in side] for side in (before, after)]
    if not all(sides):
        raise UserError("a before/after video needs frames on both sides")
    height = max(side[0].shape[0] for side in sides)
    heads = [label_strip(title, side[0].shape[1], 28, 17) for title, side in zip(titles, sides, strict=True)]
    gap = np.full((height + 28, 12, 3), PAPER, np.uint8)
    out = []
    for t in range(max(map(len, sides))):
        halves = []
        for head, side in zip(heads, sides, strict=True):
            image = side[min(t, len(side) - 1)]
            image = np.pad(image, ((0, height - image.shape[0]), (0, 0), (0, 0)), constant_values=255)
            halves.append(np.concatenate([head, image], axis=0))
        out.append(np.concatenate([halves[0], gap, halves[1]], axis=1))
    return out
