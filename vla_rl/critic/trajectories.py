"""Pictures of recorded episodes, in order, with what is known of each: what a critic learns from and is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vla_rl.critic.labels import EARLY
from vla_rl.data.dataset import Episode, dataset_info, load_episodes
from vla_rl.data.unnamed import unnamed
from vla_rl.errors import UserError
from vla_rl.keys import IMAGES, image_key


@dataclass
class Trajectory:
    """One episode as a camera saw it.

    Attributes:
        pictures: uint8 [T, 3, H, W], the first and the last moment among them.
        task: the instruction.
        succeeded: bool [T]: success at this moment or before; all False in an episode that failed.
        name: where it comes from, for messages.
        steps: frames with an action that were recorded; the last picture may be of after the last one.
        timed: whether the moment of success was recorded; otherwise it is somewhere near the end.
    """

    pictures: Tensor
    task: str
    succeeded: Tensor
    name: str
    steps: int
    timed: bool = True

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def surely_before(self) -> float:
        """Share of the way to ``end`` until which it is certainly not done."""
        return 1.0 if self.timed else EARLY

    @property
    def success(self) -> bool:
        """Whether it ended well."""
        return bool(self.succeeded[-1])

    @property
    def end(self) -> int:
        """Index of the first moment of success; of the last moment where there was none."""
        return int(self.succeeded.int().argmax()) if self.success else len(self) - 1


def camera_of(folder: Path, camera: str | None = None) -> str:
    """The feature key of ``camera`` in a data set; None: its first camera.

    Raises:
        UserError: it has no such camera, or none.
    """
    have = [key for key in dataset_info(folder)["features"] if key.startswith(IMAGES)]
    if not have:
        raise UserError(f"{folder} has no pictures: a critic needs a camera (record with env.cameras)")
    if camera is None:
        return have[0]
    key = image_key(camera)
    if key not in have:
        raise UserError(
            f"{folder} has no camera {camera}; it has: {', '.join(k.removeprefix(IMAGES) for k in have)}"
        )
    return key


def read_trajectories(
    folders: Sequence[Path], camera: str | None = None, stride: int = 1, scratch: Path | None = None
) -> list[Trajectory]:
    """All episodes of some LeRobotDatasets.

    Args:
        folders: data sets; success counts where it was recorded, and is taken for granted elsewhere (human demonstrations).
        camera: name or feature key; None = each data set's first.
        stride: keep every so many frames, counted from the last one backwards.
        scratch: folder on whose disk the pictures are, mapped into memory; None = in memory.

    Raises:
        UserError: no episode, no such camera, pictures of different sizes, an episode of a single picture.
    """
    if stride < 1:
        raise UserError(f"stride={stride} must be at least 1")
    found: list[Trajectory] = []
    for folder in folders:
        key = camera_of(folder, camera)
        for episode in load_episodes(folder, images=[key], scratch=scratch):
            found.append(_of(episode, key, stride, f"{folder}, episode {episode.index}", scratch))
    if not found:
        raise UserError("datasets=[] names no data set: record one first (vla-rl record)")
    check_sizes(found)
    return found


def first_successes(trajectories: Sequence[Trajectory]) -> dict[str, Trajectory]:
    """Instruction -> its first trajectory that succeeded."""
    return {t.task: t for t in reversed(trajectories) if t.success}


def check_sizes(trajectories: Sequence[Trajectory]) -> None:
    """Refuse pictures of different sizes.

    Raises:
        UserError: named.
    """
    first = trajectories[0]
    for each in trajectories:
        if each.pictures.shape[1:] != first.pictures.shape[1:]:
            raise UserError(
                f"{each.name} has pictures of {tuple(each.pictures.shape[2:])}, {first.name} of "
                f"{tuple(first.pictures.shape[2:])}: use one camera and size"
            )


def _of(episode: Episode, key: str, stride: int, name: str, scratch: Path | None) -> Trajectory:
    pictures = episode.data[key]
    flags = episode.data.get("next.success")
    if (after := episode.final.get(key)) is not None:
        pictures = torch.cat([pictures, after[None]])
    succeeded = torch.zeros(len(pictures), dtype=torch.bool)
    if flags is None:
        succeeded[-1] = True
    else:
        reached = flags.flatten().int().cummax(0).values.bool()
        # The flag of a step speaks of the moment after it, which is the next picture.
        succeeded[1:] = reached[: len(pictures) - 1]
        succeeded[-1] |= reached[-1]
    if len(pictures) < 2:
        raise UserError(f"{name} has {len(pictures)} pictures: progress needs at least two")
    kept = torch.arange(len(pictures) - 1, -1, -stride).flip(0)
    if kept[0] != 0:
        kept = torch.cat([kept.new_zeros(1), kept])
    room = None if scratch is None else unnamed(scratch, (len(kept), *pictures.shape[1:]))
    pictures = torch.index_select(pictures, 0, kept, out=room)
    return Trajectory(pictures, episode.task, succeeded[kept], name, episode.length, flags is not None)
