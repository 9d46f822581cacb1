"""Videos that play anywhere, written whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from vla_rl.errors import UserError

GREEN, RED, GREY = (46, 160, 67), (207, 34, 46), (110, 119, 129)
MIN_SIDE = 192
"""Frames smaller than this are enlarged (whole factors, nearest), so that 96 px can be watched."""

Frames = Sequence[Tensor]
"""T pictures [3, H, W] uint8."""


def _array(frame: Tensor) -> np.ndarray:
    return np.ascontiguousarray(frame.numpy().transpose(1, 2, 0))


def _codec() -> str:
    import av

    for name in ("libx264", "libopenh264", "h264", "mpeg4"):
        try:
            av.codec.Codec(name, "w")
            return name
        except Exception:
            continue
    raise UserError("PyAV has no H.264 or MPEG-4 encoder: reinstall the av package")


def save_mp4(frames: Frames | Sequence[np.ndarray], path: Path, fps: int) -> Path:
    """Write an mp4.

    Args:
        frames: T pictures [3, H, W] uint8 tensors, or [H, W, 3] uint8 arrays.
        path: file; written under another name and renamed.
        fps: frames per second.
    """
    import av

    arrays = [_array(f) if isinstance(f, Tensor) else f for f in frames]
    height, width = arrays[0].shape[:2]
    factor = max(1, -(-MIN_SIDE // min(height, width)))
    height, width = height * factor // 2 * 2, width * factor // 2 * 2
    temporary = path.with_name(f".{path.name}.tmp.mp4")
    codec = _codec()
    with av.open(str(temporary), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "26", "preset": "fast"}
        for array in arrays:
            large = array.repeat(factor, 0).repeat(factor, 1)[:height, :width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(large), format="rgb24")))
        container.mux(stream.encode())
    temporary.replace(path)
    return path


def grid(
    videos: Sequence[Frames], labels: Sequence[str], success: Sequence[bool | None], columns: int = 3
) -> list[np.ndarray]:
    """Several videos side by side, each with its label and a frame: green success, red failure.

    Shorter ones hold their last picture. Returns T arrays [H, W, 3] uint8.
    """
    import cv2

    columns = min(columns, len(videos))
    cells = []
    for frames, label, won in zip(videos, labels, success, strict=True):
        colour = GREY if won is None else GREEN if won else RED
        cell = []
        for frame in frames:
            image = _array(frame)
            factor = max(1, -(-MIN_SIDE // min(image.shape[:2])))
            image = np.ascontiguousarray(image.repeat(factor, 0).repeat(factor, 1))
            cv2.putText(image, label[:28], (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 2, cv2.LINE_AA)
            cv2.putText(image, label[:28], (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
            cell.append(cv2.copyMakeBorder(image, 3, 3, 3, 3, cv2.BORDER_CONSTANT, value=colour))
        cells.append(cell)
    length = max(len(cell) for cell in cells)
    blank = np.full_like(cells[0][0], 255)
    out = []
    for t in range(length + 8):  # hold the end for a moment
        row_images = []
        for first in range(0, len(cells), columns):
            row = [cell[min(t, len(cell) - 1)] for cell in cells[first : first + columns]]
            row += [blank] * (columns - len(row))
            row_images.append(np.concatenate(row, axis=1))
        out.append(np.concatenate(row_images, axis=0))
    return out
