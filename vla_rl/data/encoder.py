"""Video encoder that stands in for LeRobot's streaming one in ``LeRobotDataset``'s writer.

LeRobot 0.6.1 encodes in a thread per camera behind a queue and *drops* frames when the queue is full, spends
most of its time on per-frame histograms, and cannot store an episode of one frame. Here encoding is
synchronous, statistics come from frames spread over the episode, and one frame is enough.
"""

from __future__ import annotations

import shutil
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np

VIDEO = {"vcodec": "h264", "pix_fmt": "yuv444p", "g": 10, "crf": 12, "preset": "ultrafast"}
"""Measured at 96 px on one core, per frame: Meta-World (100 frames) 47 dB, 2.1 kB, 6,000 encoded a second;
ManiSkill's textured table (14 frames) 42 dB, 3.4 kB, 2,500 a second with the encoder's start. LeRobot's own
default (SVT-AV1, 4:2:0, crf 30): 32 and 29 dB, 1.2 and 2.0 kB, 460 a second on Meta-World; its halved colour
resolution blurs objects a few pixels wide. A policy acts on undamaged pictures, so quality first."""

STATS_FRAMES = 16
"""Frames of an episode that enter its image statistics."""


class EpisodeEncoder:
    """One video file per camera and episode."""

    def __init__(self, fps: int) -> None:
        self.fps = fps
        self._frames: dict[str, list[np.ndarray]] = {}
        self._folder = Path()

    def start_episode(
        self, video_keys: list[str], temp_dir: Path, depth_video_keys: list[str] | None = None
    ) -> None:
        """Begin an episode; files go into new folders below ``temp_dir``."""
        if depth_video_keys:
            raise NotImplementedError(f"depth cameras {depth_video_keys} are not recorded")
        self._folder = Path(temp_dir)
        self._frames = {key: [] for key in video_keys}

    def feed_frame(self, video_key: str, image: np.ndarray) -> None:
        """Append a frame, uint8 [H, W, 3]."""
        self._frames[video_key].append(image)

    def finish_episode(self) -> dict[str, tuple[Path, dict[str, np.ndarray]]]:
        """Encode; returns camera -> (file, statistics over pixels in 0..255, each [3])."""
        results = {}
        for key, frames in self._frames.items():
            folder = Path(tempfile.mkdtemp(dir=self._folder))  # LeRobot removes it again
            file = folder / f"{key.replace('/', '_')}.mp4"
            try:
                encode_video(file, frames, self.fps)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            results[key] = (file, _image_stats(frames))
        self._frames = {}
        return results

    def cancel_episode(self) -> None:
        """Forget the frames fed so far."""
        self._frames = {}

    def close(self) -> None:
        """Nothing is pending between episodes."""
        self._frames = {}


def encode_video(file: Path, frames: list[np.ndarray], fps: int) -> None:
    """Write uint8 [H, W, 3] frames as a video with ``VIDEO``'s codec, one thread."""
    import av

    options = {"g": str(VIDEO["g"]), "crf": str(VIDEO["crf"]), "preset": str(VIDEO["preset"]), "threads": "1"}
    with av.open(str(file), "w") as container:
        stream = container.add_stream(str(VIDEO["vcodec"]), fps, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt = str(VIDEO["pix_fmt"])
        stream.height, stream.width = frames[0].shape[:2]
        stream.time_base = Fraction(1, fps)
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _image_stats(frames: list[np.ndarray]) -> dict[str, np.ndarray]:
    """LeRobot's statistics of an episode's pixels, each [3]; ``count`` [1] is the number of frames used."""
    chosen = np.linspace(0, len(frames) - 1, min(STATS_FRAMES, len(frames))).round().astype(int)
    step = max(1, max(frames[0].shape[:2]) // 96)
    pixels = np.concatenate([frames[i][::step, ::step].reshape(-1, 3) for i in chosen])
    stats = {
        "min": pixels.min(0),
        "max": pixels.max(0),
        "mean": pixels.mean(0),
        "std": pixels.std(0),
        "count": np.array([len(chosen)]),
    }
    for q in (1, 10, 50, 90, 99):
        stats[f"q{q:02d}"] = np.percentile(pixels, q, axis=0)
    return {k: v if k == "count" else v.astype(np.float64) for k, v in stats.items()}
