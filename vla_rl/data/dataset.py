"""Read a LeRobotDataset v3 once into memory: every frame decoded once, in file order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_rl.data.build import FINAL, MARKER
from vla_rl.data.unnamed import unnamed
from vla_rl.errors import UserError
from vla_rl.keys import ACTION, IMAGES
from vla_rl.policies.base import PolicySpec

BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")


@dataclass
class Episode:
    """One recorded episode of T steps.

    Attributes:
        index: episode number in the data set.
        task: the instruction.
        data: key -> [T, ...]: vectors float32, images uint8 [T, 3, H, W], flags bool [T], reward float32 [T].
        final: key -> [...], the observation after the last action (empty when the data set has none).
        seed: of the simulator; None when not recorded.
        task_id: the environment's name of the task (``vla-rl record`` notes it), else None.
    """

    index: int
    task: str
    data: dict[str, Tensor]
    final: dict[str, Tensor] = field(default_factory=dict)
    seed: int | None = None
    task_id: str | None = None

    @property
    def length(self) -> int:
        """T, the number of executed actions."""
        return len(self.data[ACTION])

    @property
    def success(self) -> bool | None:
        """Whether ``next.success`` was ever true; None when it was not recorded."""
        flags = self.data.get("next.success")
        return None if flags is None else bool(flags.any())


def dataset_info(path: Path | str) -> dict[str, Any]:
    """``meta/info.json`` of a local LeRobotDataset v3.

    Raises:
        UserError: not there, not readable, or of another version.
    """
    path = Path(path)
    file = path / "meta" / "info.json"
    if not file.is_file():
        work = path.with_name(path.name + ".recording")
        remedy = "make one with vla-rl record"
        if work.is_dir():
            remedy = f"{work} holds an unfinished recording: run its vla-rl record command again"
        raise UserError(f"{path} is not a LeRobotDataset (no meta/info.json): {remedy}")
    try:
        info = json.loads(file.read_text())
        version, features = info["codebase_version"], info["features"]
    except (ValueError, KeyError) as error:
        raise UserError(f"{file} is damaged ({type(error).__name__}): restore it or record again") from error
    if not str(version).startswith("v3") or not isinstance(features, dict):
        raise UserError(f"{path} is a LeRobotDataset {version}, not v3: convert it with LeRobot's script")
    return info


def check_dataset_for(
    policy: PolicySpec, path: Path | str, input_dims: dict[str, int] | None = None
) -> dict[str, Any]:
    """Refuse a data set that lacks what a policy needs, before anything slow starts.

    Args:
        policy: what it reads and gives.
        path: the data set.
        input_dims: expected sizes of vector keys, e.g. ``{"observation.state": 9}``.

    Returns:
        ``meta/info.json``.

    Raises:
        UserError: names the key, what is wrong with it and the remedy.
    """
    info = dataset_info(path)
    features = info["features"]
    if not info.get("total_episodes"):
        raise UserError(f"{path} holds no episodes: record some with vla-rl record")
    vectors = {key: None for key in policy.state_keys} | dict(input_dims or {}) | {ACTION: policy.action_dim}
    for key, size in vectors.items():
        if key not in features:
            have = ", ".join(k for k in features if k not in BOOKKEEPING)
            raise UserError(f"{path} has no key {key}, which the policy needs; it has: {have}")
        shape = tuple(features[key]["shape"])
        if size is not None and shape != (size,):
            raise UserError(
                f"{key} in {path} has shape {shape}, the policy needs ({size},): record with the policy's "
                "robot and control mode"
            )
    for key in policy.image_keys:
        if features.get(key, {}).get("dtype") not in ("video", "image"):
            have = ", ".join(k for k in features if k.startswith(IMAGES)) or "none"
            raise UserError(f"{path} has no camera {key}, which the policy needs; it has: {have}")
    fps = info.get("fps")
    if policy.rate_hz is not None and fps and abs(policy.rate_hz - fps) > 0.5:
        raise UserError(f"{path} was recorded at {fps} Hz, the policy needs {policy.rate_hz} Hz: match them")
    return info


def load_episodes(
    path: Path | str,
    *,
    episodes: Sequence[int] | None = None,
    images: bool | Sequence[str] = True,
    scratch: Path | None = None,
) -> list[Episode]:
    """Read episodes into memory.

    Args:
        path: a local LeRobotDataset v3.
        episodes: which episode indices; None = all.
        images: decode all cameras, none, or those feature keys.
        scratch: folder on whose disk decoded videos are instead (``vla_rl.data.unnamed``).

    Returns:
        Episodes in the order asked for.
    """
    import pyarrow.parquet as pq
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    path = Path(path)
    info = dataset_info(path)
    features = info["features"]
    if not info.get("total_episodes"):
        raise UserError(f"{path} holds no episodes: record some with vla-rl record")
    meta = LeRobotDatasetMetadata(f"local/{path.name}", root=path)
    if meta.episodes is None:
        raise UserError(f"{path}/meta/episodes is missing: restore it or record again")
    wanted = list(range(meta.total_episodes)) if episodes is None else [int(e) for e in episodes]
    for index in wanted:
        if not 0 <= index < meta.total_episodes:
            raise UserError(f"episode {index} is not in {path}, which has {meta.total_episodes}")
    videos = [key for key in features if features[key]["dtype"] == "video"]
    stills = [key for key in features if features[key]["dtype"] == "image"]
    cameras = [k for k in videos + stills if images is True or (images is not False and k in images)]
    if images not in (True, False):
        for key in images:
            if key not in cameras:
                raise UserError(f"{path} has no camera {key}; it has: {', '.join(videos + stills) or 'none'}")
    other = ("video", "image", "string", "language")
    columns = [key for key, feature in features.items() if feature["dtype"] not in other]
    tables: dict[Path, dict[str, np.ndarray]] = {}
    rows = {index: meta.episodes[index] for index in wanted}
    loaded: dict[int, Episode] = {}
    finals, task_ids = _load_finals(path), _load_task_ids(path)
    for index, row in rows.items():
        file = path / meta.get_data_file_path(index)
        if file not in tables:
            try:
                table = pq.read_table(file, columns=columns + [k for k in stills if k in cameras])
            except Exception as error:  # Arrow has its own exception for a missing footer, a missing file ...
                raise _damaged(file, "read", error) from error
            tables[file] = {k: _column(k, table.column(k), features[k]) for k in table.column_names}
        table_columns = tables[file]
        at = table_columns["episode_index"] == index
        data = {k: torch.from_numpy(v[at]) for k, v in table_columns.items() if k not in BOOKKEEPING}
        if len(data[ACTION]) != row["length"]:
            found = len(data[ACTION])
            raise UserError(f"{file} has {found} of {row['length']} frames of episode {index}: restore it")
        seed = data.pop("seed", None)
        loaded[index] = Episode(
            index=index,
            task=row["tasks"][0] if row.get("tasks") else "",
            data=data,
            final={k: v[index] for k, v in finals.items() if not k.startswith(IMAGES) or k in cameras},
            seed=None if seed is None else int(seed[0]),
            task_id=task_ids[index] if index < len(task_ids) else None,
        )
    for key in (k for k in cameras if k in videos):
        _decode_into(loaded, rows, path, meta, key, scratch)
    return [loaded[index] for index in wanted]


def _damaged(file: Path, what: str, error: Exception) -> UserError:
    return UserError(f"{file} cannot be {what} ({type(error).__name__}): restore it or record again")


def _load_finals(path: Path) -> dict[str, Tensor]:
    """Final observations that our recorder adds; {} for other data sets."""
    if not (path / FINAL).is_file():
        return {}
    from safetensors.torch import load_file

    return load_file(path / FINAL)


def _load_task_ids(path: Path) -> list[str]:
    """Task of each episode, as our recorder notes it; [] for other data sets."""
    file = path / MARKER
    return json.loads(file.read_text()).get("task_ids", []) if file.is_file() else []


def _column(key: str, column: Any, feature: dict[str, Any]) -> np.ndarray:
    """An Arrow column as [N, D], [N] (a reward, a flag) or decoded still images [N, 3, H, W]."""
    if feature["dtype"] == "image":
        import io

        from PIL import Image

        stills = [Image.open(io.BytesIO(cell["bytes"])).convert("RGB") for cell in column.to_pylist()]
        return np.stack([np.asarray(still).transpose(2, 0, 1) for still in stills])
    flat = column.combine_chunks()
    shape = tuple(feature["shape"])
    while hasattr(flat, "flatten") and hasattr(flat.type, "value_type"):
        flat = flat.flatten()
    values = flat.to_numpy(zero_copy_only=False).astype(feature["dtype"])
    is_vector = shape != (1,) or key.startswith("observation.") or key == ACTION
    return values.reshape(len(column), *shape) if is_vector else values


def decode_video(file: Path, scratch: Path | None = None) -> Tensor:
    """All frames of a video, in order.

    One sequential pass with PyAV (3,300-5,500 frames/s at 96 px on one core); seeking for every frame, as a
    shuffled data loader does, decodes each group of pictures again for every frame of it.

    Args:
        file: of the video.
        scratch: folder on whose disk the frames are, mapped into memory; None = in memory.

    Returns:
        uint8 [N, 3, H, W].
    """
    import av
    from av.error import FFmpegError

    n, out = 0, np.empty((0, 3, 0, 0), np.uint8)
    try:
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            count, size = stream.frames, (stream.codec_context.height, stream.codec_context.width)
            shape = (count, 3, *size)
            out = np.empty(shape, np.uint8) if scratch is None else unnamed(scratch, shape).numpy()
            for frame in container.decode(stream):
                if n == len(out):  # a container that does not know its length
                    out = np.concatenate([out, np.empty((max(64, n), 3, *size), np.uint8)])
                out[n] = frame.to_ndarray(format="rgb24").transpose(2, 0, 1)
                n += 1
    except (FFmpegError, IndexError, FileNotFoundError) as error:
        raise _damaged(file, "decoded", error) from error
    return torch.from_numpy(out[:n])


def _decode_into(
    loaded: dict[int, Episode],
    rows: dict[int, dict[str, Any]],
    path: Path,
    meta: Any,
    key: str,
    scratch: Path | None,
) -> None:
    """Add a camera's frames to the episodes, each video file decoded once."""
    by_file: dict[Path, list[int]] = {}
    for index in loaded:
        by_file.setdefault(path / meta.get_video_file_path(index, key), []).append(index)
    for file, indices in by_file.items():
        frames = decode_video(file, scratch)
        for index in indices:
            start = round(rows[index][f"videos/{key}/from_timestamp"] * meta.fps)
            stop = start + loaded[index].length
            if stop > len(frames):
                raise UserError(f"{file} has {len(frames)} frames, episode {index} needs {stop}: restore it")
            # A copy when only some episodes are wanted, so that the rest of the file can be freed.
            part = frames[start:stop]
            whole = scratch is not None or len(indices) == meta.total_episodes
            loaded[index].data[key] = part if whole else part.clone()


def episode_tasks(episodes: Sequence[Episode]) -> dict[str, int]:
    """Number of episodes per instruction."""
    counts: dict[str, int] = {}
    for episode in episodes:
        counts[episode.task] = counts.get(episode.task, 0) + 1
    return counts
