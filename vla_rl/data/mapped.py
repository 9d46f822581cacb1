"""Frames of a replay in files, mapped into memory: as many as the disk holds, and nothing to copy at a checkpoint.

TorchRL's ``LazyMemmapStorage`` in a folder that outlives the process, and what a ring of them needs to be gone on with
after a kill: how many frames each row has ever been given, so that those written after a checkpoint are known.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tensordict import MemoryMappedTensor, TensorDict
from torch import Tensor
from torchrl.data import LazyMemmapStorage

from vla_rl.data.spool import disk_errors, fsync_tree
from vla_rl.errors import UserError

FRAMES, GIVEN = "frames", "given.memmap"


class MappedFrames:
    """The storage of a ``ReplayBuffer`` in ``folder``.

    Args:
        folder: of these frames alone; made when the first come.
        size: frames.
        rows: of the replay.

    Attributes:
        given: [rows] frames that each row has ever been given, in a file as well.
    """

    def __init__(self, folder: Path, size: int, rows: int) -> None:
        self.folder, self.size, self.rows = folder, size, rows
        self.storage: LazyMemmapStorage | None = None
        self.given = torch.zeros(rows, dtype=torch.long)
        self.known: TensorDict | None = None

    @property
    def _storage(self) -> TensorDict:
        """All frames, as plain tensors."""
        assert self.known is not None
        return self.known

    def set(self, index: Tensor, frames: TensorDict) -> None:
        """Write ``frames`` [k] at ``index`` [k].

        Raises:
            UserError: the folder holds another run's frames, or cannot be written.
        """
        if self.storage is None:
            self._make(frames)
        assert self.storage is not None
        self.storage.set(index, frames)  # type: ignore[arg-type]

    def coming(self, counts: Tensor) -> None:
        """``counts`` [rows] frames are about to be written: said in the file before they are."""
        if self.storage is not None:
            self.given += counts

    def _make(self, frames: TensorDict) -> None:
        if (self.folder / FRAMES).exists():
            raise UserError(
                f"{self.folder} holds the frames of another run: name another algorithm.replay_path, resume that run, or "
                "delete the folder"
            )
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.storage = LazyMemmapStorage(
                self.size, scratch_dir=self.folder / FRAMES, existsok=True, auto_cleanup=False
            )
            self.storage.set(torch.zeros(1, dtype=torch.long), frames[:1])  # type: ignore[arg-type]
            given = self.folder / GIVEN
            self.given = MemoryMappedTensor.zeros(self.rows, dtype=torch.long, filename=str(given))
        self._know()

    def _know(self) -> None:
        # Its own tensors carry their files along through every operation, at a cost.
        assert self.storage is not None
        mapped: TensorDict = self.storage._storage  # type: ignore[assignment]
        self.known = TensorDict({}, batch_size=[self.size])
        for key, value in mapped.items(include_nested=True, leaves_only=True):
            self.known[key] = value.as_subclass(Tensor)  # pyright: ignore[reportAttributeAccessIssue]

    def reopen(self) -> None:
        """Go on with the frames that are there.

        Raises:
            UserError: they are not, or of another size.
        """
        try:
            mapped = TensorDict.load_memmap(self.folder / FRAMES)
            given = MemoryMappedTensor.from_filename(
                str(self.folder / GIVEN), dtype=torch.long, shape=torch.Size([self.rows])
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"cannot read the replay's frames in {self.folder} ({error}): resume without them by deleting the folder's run, "
                "or begin anew"
            ) from error
        if len(mapped) != self.size:
            raise UserError(
                f"{self.folder} holds {len(mapped)} frames, this run wants {self.size}: keep env.num_envs and algorithm.capacity"
            )
        self.storage = LazyMemmapStorage(
            self.size, scratch_dir=self.folder / FRAMES, existsok=True, auto_cleanup=False
        )
        self.storage._storage = mapped
        self.storage.initialized = True
        self.given = given
        self._know()

    def flush(self) -> None:
        """Everything written so far to the disk itself."""
        if self.storage is not None:
            with disk_errors(self.folder):
                fsync_tree(self.folder)
