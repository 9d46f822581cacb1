"""A durable folder of finished episodes next to a recording's final folder, so that a kill loses little.

LeRobot's writer keeps its parquet footer in memory until ``finalize``: a crash before that makes every
episode of the file unreadable. So episodes are first written here, each one whole (fsync, then rename), and
the data set is built from them at the end into a temporary folder that is renamed into place.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vla_rl.errors import UserError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk or a folder that cannot be written into one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise UserError(
                f"no space left while writing {folder}: free some and run the same command again "
                "(finished episodes are kept)"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(f"cannot write {error.filename or folder}: choose another out folder") from error
        raise


def fsync_path(path: Path) -> None:
    """Force a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(root: Path) -> None:
    """``fsync_path`` of all files and folders below ``root``."""
    for folder, _, files in os.walk(root):
        for name in files:
            fsync_path(Path(folder, name))
        fsync_path(Path(folder))


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: after a kill it holds the old or the new bytes, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    fsync_path(path.parent)


class Spool:
    """Finished episodes of a recording, one npz file each, named by the attempt's number.

    Attributes:
        folder: the work folder, ``<out>.recording``.
        build: where the data set is assembled, inside ``folder``.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        """Open or create; ``settings`` must equal those the folder was begun with.

        Raises:
            UserError: other settings, or another process is recording here.
        """
        self.out = out
        self.folder = out.with_name(out.name + ".recording")
        self.build = self.folder / "build"
        self._episodes = self.folder / "episodes"
        with disk_errors(self.folder):
            if self.folder.exists() and not self.folder.is_dir():
                raise UserError(f"{self.folder} is a file: move it away or choose another out folder")
            self._episodes.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                # lockf, not flock: a simulator process forked from here must not keep the lock after a kill.
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self.close()
                raise UserError(f"another process is recording into {out}: choose another out") from error
            marker = self.folder / "settings.json"
            try:
                if marker.exists():
                    found = json.loads(marker.read_text())
                    check_settings(found, settings, self.folder, ignore=("episodes",))
                else:
                    write_atomic(marker, json.dumps(settings, indent=1).encode())
            except BaseException:
                self.close()
                raise
            for left in self._episodes.glob(".*.tmp"):
                left.unlink()

    def done(self) -> dict[int, bool]:
        """Attempt -> whether its frames are kept here (False: it failed and was not wanted)."""
        kept = {int(p.stem): True for p in self._episodes.glob("[0-9]*.npz")}
        return kept | {int(p.stem): False for p in self._episodes.glob("[0-9]*.failed")}

    def write(self, attempt: int, arrays: dict[str, np.ndarray] | None) -> None:
        """Store an attempt durably; None = it failed and its frames are not wanted."""
        with disk_errors(self.folder):
            if arrays is None:
                write_atomic(self._episodes / f"{attempt:06d}.failed", b"")
                return
            path = self._episodes / f"{attempt:06d}.npz"
            temporary = path.with_name(f".{path.name}.tmp")
            try:
                with open(temporary, "wb") as file:
                    # numpy's own savez_compressed has no level: level 1 is 5x faster and fast enough to hide
                    # behind rendering.
                    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                        for key, value in arrays.items():
                            with archive.open(key + ".npy", "w", force_zip64=True) as member:
                                np.lib.format.write_array(member, np.asarray(value), allow_pickle=False)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                temporary.unlink(missing_ok=True)  # gives the room back
                raise
            os.replace(temporary, path)
            fsync_path(path.parent)

    def read(self, attempt: int, keys: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
        """Arrays of a kept attempt; None = all."""
        with np.load(self._episodes / f"{attempt:06d}.npz", allow_pickle=False) as archive:
            return {key: archive[key] for key in (keys or archive.files)}

    def publish(self) -> None:
        """Rename the built data set to ``out`` and remove the work folder."""
        with disk_errors(self.folder):
            fsync_tree(self.build)
            os.rename(self.build, self.out)  # replaces an empty folder, refuses a filled one
            fsync_path(self.out.parent)
        self.remove()

    def remove(self) -> None:
        """Delete the work folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Give up the lock."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def check_settings(
    found: dict[str, Any], wanted: dict[str, Any], where: Path, ignore: tuple[str, ...] = ()
) -> None:
    """Refuse to continue a recording that was begun differently.

    Raises:
        UserError: names the first setting that differs.
    """
    for key in sorted(set(found) | set(wanted)):
        if key not in ignore and found.get(key) != wanted.get(key):
            raise UserError(
                f"{where} was recorded with {key}={found.get(key)}, not {wanted.get(key)}: "
                "use the same settings, another out folder, or delete it"
            )
