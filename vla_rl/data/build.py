"""Assemble a LeRobotDataset v3 from spooled episodes, with LeRobot's own writer."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_rl.data.encoder import VIDEO, EpisodeEncoder
from vla_rl.data.spool import NO_SPACE, Spool, disk_errors
from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.keys import ACTION, ENV_STATE, STATE, TASK

MARKER = Path("meta", "vla_rl_recording.json")
"""Settings and summary of the recording, inside the data set."""

FINAL = Path("meta", "vla_rl_final_observations.safetensors")
"""The observation after each episode's last action, for which LeRobot has no place: key -> [N, ...]."""

MAX_VIDEO_MB = 16
"""LeRobot copies the whole video file for every episode appended to it; small files keep that linear."""


def _features(settings: dict[str, Any], spec: EnvSpec) -> dict[str, dict]:
    """LeRobot's description of the columns."""

    def vector(size: int, names: Sequence[str] = ()) -> dict:
        return {"dtype": "float32", "shape": (size,), "names": list(names) or None}

    features = {STATE: vector(spec.state_dim, spec.state_names)}
    if spec.env_state_dim:
        features[ENV_STATE] = vector(spec.env_state_dim)
    for key, (height, width) in settings["cameras"].items():
        names = ["height", "width", "channels"]
        features[key] = {"dtype": "video", "shape": (height, width, 3), "names": names}
    features[ACTION] = vector(spec.action_dim, spec.action_names)
    features["next.reward"] = vector(1)
    for key in ("next.success", "next.done", "next.truncated"):
        features[key] = {"dtype": "bool", "shape": (1,), "names": None}
    for key in settings.get("columns", []):
        features[key] = {"dtype": "bool", "shape": (1,), "names": None}
    features["seed"] = {"dtype": "int64", "shape": (1,), "names": None}
    return features


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No encoder banners and no progress bar for every episode."""
    import datasets
    from av import logging as libav

    bars = datasets.are_progress_bars_disabled()
    libav.set_libav_level(libav.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        libav.set_libav_level(libav.INFO)  # libav's own default; it cannot be asked for
        if not bars:
            datasets.enable_progress_bars()


def build_dataset(
    spool: Spool, kept: list[int], settings: dict[str, Any], summary: dict[str, Any], spec: EnvSpec
) -> None:
    """Assemble the data set in ``spool.build`` with LeRobot's own writer."""
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from safetensors.numpy import save_file

    shutil.rmtree(spool.build, ignore_errors=True)
    features = _features(settings, spec)
    cameras = list(settings["cameras"])
    finals: dict[str, list[np.ndarray]] = {}
    try:
        with disk_errors(spool.folder), _quiet():
            dataset = LeRobotDataset.create(
                repo_id=f"local/{spool.out.name}",
                fps=settings["fps"],
                features=features,
                root=spool.build,
                robot_type=spec.id,
                use_videos=bool(cameras),
                video_backend="pyav",
                rgb_encoder=RGBEncoderConfig(**VIDEO) if cameras else None,
                streaming_encoding=True,
                video_files_size_in_mb=MAX_VIDEO_MB,
            )
            if dataset.writer is not None and cameras:
                dataset.writer._streaming_encoder = EpisodeEncoder(settings["fps"])  # type: ignore[assignment]
            for attempt in kept:
                arrays = spool.read(attempt)
                task = str(arrays[TASK])
                for t in range(len(arrays[ACTION])):
                    frame: dict[str, Any] = {key: arrays[key][t] for key in features if key in arrays}
                    frame |= {key: np.ascontiguousarray(arrays[key][t].transpose(1, 2, 0)) for key in cameras}
                    dataset.add_frame(frame | {TASK: task})
                dataset.save_episode()
                for key in [STATE, ENV_STATE, *cameras]:
                    if f"final/{key}" in arrays:
                        finals.setdefault(key, []).append(arrays[f"final/{key}"])
            dataset.finalize()
            save_file({key: np.stack(value) for key, value in finals.items()}, spool.build / FINAL)
            tasks = settings["tasks"]
            task_ids = [tasks[attempt % len(tasks)] for attempt in kept]
            marker = {"settings": settings, "summary": summary, "task_ids": task_ids}
            (spool.build / MARKER).write_text(json.dumps(marker, indent=1))
    except UserError:
        raise
    except Exception as error:
        # PyAV, Arrow and LeRobot's encoder threads wrap the errno, each in its own way.
        full = shutil.disk_usage(spool.folder).free < 1 << 20
        if full or getattr(error, "errno", None) in NO_SPACE or "No space left" in str(error):
            shutil.rmtree(spool.build, ignore_errors=True)
            raise UserError(
                f"no space left while writing {spool.build}: free some and run the same command again"
            ) from error
        raise
