"""The run folder: configuration, metrics and checkpoints that survive ``kill -9`` at any instant."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_rl.errors import UserError
from vla_rl.runtime import checkpoints as store
from vla_rl.runtime.checkpoints import check_free_disk, verify_checkpoint
from vla_rl.runtime.metrics import (
    Sink,
    TensorBoard,
    Wandb,
    append_row,
    plain,
    read_metrics,
    truncate_rows,
    write_bytes,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RunFolder", "check_free_disk", "read_metrics", "verify_checkpoint"]

NEED_MB = 512
"""MiB that must be free before a run begins."""

log = logging.getLogger("vla_rl.run")

_open: set[Path] = set()
"""Folders this process holds: a record lock does not keep a process from itself."""


class RunFolder:
    """``runs/<name>/``; use ``create`` or ``open``. Locked against a second user until ``close``.

    Holds ``config.yaml``, ``metrics.jsonl``, ``log.txt``, ``checkpoints/<step>/``, ``videos/``, ``report.html`` and
    ``report.json``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.videos = path / "videos"
        self.sinks: list[Sink] = []
        self._lock = _lock(path)
        self._handlers = _log_to(path / "log.txt")

    @classmethod
    def create(cls, root: Path, name: str, config_yaml: str, need_mb: int = NEED_MB) -> RunFolder:
        """A new folder.

        Raises:
            UserError: it exists already, cannot be made, or the disk is nearly full.
        """
        if not name or Path(name).is_absolute() or ".." in Path(name).parts or name.strip("./") == "":
            raise UserError(f"run.name='{name}' is no folder name: use letters, digits, - and _")
        path = Path(root) / name
        exists = f"{path} exists and is not overwritten: resume={path}, or choose another run.name"
        if os.path.lexists(path):
            raise UserError(exists)
        check_free_disk(path, need_mb)
        # Made under another name: a kill in between must not leave a folder that can be neither used nor resumed.
        temporary = path.with_name(f".{path.name}.new-{os.getpid()}")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            (temporary / "checkpoints").mkdir(parents=True)
            (temporary / "videos").mkdir()
            (temporary / "config.yaml").write_text(config_yaml)
            temporary.rename(path)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if os.path.lexists(path):
                raise UserError(exists) from error
            raise UserError(f"cannot create {path}: {error.strerror}: choose another run.root") from error
        run = cls(path)
        log.info("begun by process %d", os.getpid())
        return run

    @classmethod
    def open(cls, path: Path, need_mb: int = NEED_MB) -> RunFolder:
        """An existing folder, to resume it: what a kill left is tidied, metrics go back to the checkpoint's step.

        Raises:
            UserError: no run there, in use, nearly full disk, or it has checkpoints and none can be used.
        """
        path = Path(path)
        if not (path / "config.yaml").is_file():
            raise UserError(
                f"{path} is no run folder (it would hold config.yaml): check the name after resume="
            )
        check_free_disk(path, need_mb)
        run = cls(path)  # the lock first: another process may be writing what would be tidied away
        try:
            run.checkpoints.mkdir(exist_ok=True)
            run.videos.mkdir(exist_ok=True)
            store.recover(run.checkpoints)
            newest = run.latest_checkpoint()
            if newest is None and store.complete(run.checkpoints):
                # Starting over here would throw away the run's metrics and, later, what could be rescued.
                raise _unusable(path, store.complete(run.checkpoints)[0])
            step = store.step_of(newest) if newest else -1
            truncate_rows(run.metrics, step)
            log.info(
                "resumed by process %d %s", os.getpid(), f"at step {step}" if newest else "from the start"
            )
        except BaseException:
            run.close()
            raise
        return run

    def close(self) -> None:
        """Release the lock, end the log and the other sinks; harmless twice."""
        for sink in self.sinks:
            sink.close()
        self.sinks = []
        for handler in self._handlers:
            logging.getLogger("vla_rl").removeHandler(handler)
            handler.close()
        self._handlers = []
        if not self._lock.closed:
            self._lock.close()
            _open.discard(self.path.resolve())

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- metrics ----------------------------------------------------------------------------------------

    def also_log_to(self, *, tensorboard: bool = False, wandb: str | None = None) -> None:
        """Send metrics to TensorBoard files and, given a project's name, to wandb as well.

        Raises:
            UserError: the package that was asked for is not installed.
        """
        if tensorboard:
            self.sinks.append(TensorBoard(self.path))
        if wandb:
            self.sinks.append(Wandb(self.path, wandb))

    def log(self, step: int, **values: Any) -> None:
        """Append one line to ``metrics.jsonl``; NaN and infinities are written as null."""
        row = plain(values)
        append_row(self.metrics, {"step": step} | row)
        for sink in self.sinks:
            sink.log(step, row)

    def exhibit(self, pictures: dict[str, Tensor]) -> None:
        """Write ``pictures`` uint8 [3, H, W] to ``pictures/NAME.png``, each in place of what has had its name."""
        for name, picture in pictures.items():
            from torchvision.io import encode_png  # runs without pictures need not wait for it

            path = self.path / "pictures" / f"{name.replace(' ', '-')}.png"
            path.parent.mkdir(exist_ok=True)
            write_bytes(path, encode_png(picture).numpy().tobytes())

    def exhibited(self) -> dict[str, Path]:
        """Name -> file of what ``exhibit`` has written."""
        return {p.stem.replace("-", " "): p for p in sorted((self.path / "pictures").glob("*.png"))}

    def truncate_metrics(self, step: int) -> None:
        """Drop lines after ``step`` (they belong to what a crash undid)."""
        truncate_rows(self.metrics, step)

    # ---- checkpoints ------------------------------------------------------------------------------------

    def save_checkpoint(
        self, step: int, writer: Callable[[Path], None], keep: int = 2, spare: Path | None = None
    ) -> Path:
        """Let ``writer`` fill a folder, then make it ``checkpoints/<step>`` in one rename; ``spare`` an older one.

        Raises:
            UserError: no space left; earlier checkpoints are intact.
        """
        return store.save(self.checkpoints, step, writer, keep, spare)

    def set_aside(self, checkpoint: Path, name: str) -> Path:
        """Take ``checkpoint`` out of the run's course, into a run folder of its own, ``name`` inside this one."""
        aside = self.path / name
        shutil.rmtree(aside, ignore_errors=True)
        (aside / "checkpoints").mkdir(parents=True)
        shutil.copy(self.path / "config.yaml", aside)
        checkpoint.rename(aside / "checkpoints" / checkpoint.name)
        return aside

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint that verifies; broken ones are skipped with a warning."""
        return self.latest_in(self.path)

    @staticmethod
    def latest_in(run: Path) -> Path | None:
        """As ``latest_checkpoint``, without opening the run."""
        return store.latest(Path(run) / "checkpoints")


def _unusable(run: Path, newest: Path) -> UserError:
    try:
        verify_checkpoint(newest)
        why = str(newest)
    except UserError as error:
        why = str(error)
    return UserError(f"{run} has no checkpoint that can be used, start a new run ({why})")


def _lock(path: Path) -> Any:
    """The run's lock file, held.

    Raises:
        UserError: someone else holds it.
    """
    key, busy = (
        path.resolve(),
        f"{path} is in use by another process: wait for it, or choose another run.name",
    )
    if key in _open:
        raise UserError(busy)
    try:
        file = open(path / ".lock", "a+")
    except OSError as error:
        raise UserError(f"cannot write in {path}: {error.strerror}") from error
    try:
        # lockf, not flock: a simulator process forked from here must not keep the lock after a kill.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise UserError(busy.replace("process:", f"process ({holder}):") if holder else busy) from error
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(f"pid {os.getpid()}")
        file.flush()
    _open.add(key)
    return file


def _log_to(path: Path) -> list[logging.Handler]:
    """Send the package's log to ``path``; warnings still reach the terminal."""
    logger = logging.getLogger("vla_rl")
    handlers: list[logging.Handler] = []
    if not logger.hasHandlers():
        # A handler of our own silences logging's last resort, which prints warnings.
        terminal = logging.StreamHandler()
        terminal.setLevel(logging.WARNING)
        handlers.append(terminal)
    file = logging.FileHandler(path, encoding="utf-8", delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handlers.append(file)
    for handler in handlers:
        logger.addHandler(handler)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    return handlers
