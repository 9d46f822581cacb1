"""``metrics.jsonl``: one line per log, whole lines only; and where else metrics may go."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol

from vla_rl.errors import UserError


class Sink(Protocol):
    """Another place for metrics."""

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Take the values of an environment step."""
        ...

    def close(self) -> None:
        """Flush and end."""
        ...


class TensorBoard:
    """Event files in ``<run>/tensorboard``.

    Raises:
        UserError: the tensorboard package is missing.
    """

    def __init__(self, run: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("TensorBoard was asked for but is not installed: install tensorboard") from error
        self._writer = SummaryWriter(str(run / "tensorboard"))

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Write the numbers among ``values``."""
        for name, value in flat_numbers(values).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and end."""
        self._writer.close()


class Wandb:
    """A Weights & Biases run named as the folder; resumed under the same id.

    Raises:
        UserError: the wandb package is missing.
    """

    def __init__(self, run: Path, project: str) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError("wandb was asked for but is not installed: install wandb") from error
        self._run = wandb.init(project=project, name=run.name, id=run.name, dir=str(run), resume="allow")

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Send the numbers among ``values``."""
        self._run.log(flat_numbers(values), step=step)

    def close(self) -> None:
        """Flush and end."""
        self._run.finish()


def flat_numbers(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of a nested dict under ``a/b`` names; what is no number is left out."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat_numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            found[prefix + name] = float(value)
    return found


def plain(value: Any) -> Any:
    """JSON's own types: 0-d tensors and numpy numbers become numbers, NaN and infinities null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "item"):
        return plain(value.item())
    return str(value)


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append one line and hand it to the system, so that a kill loses at most the line being written."""
    with open(path, "a", buffering=1) as file:
        file.write(json.dumps(plain(row)) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a ``metrics.jsonl``; torn lines are left out."""
    rows = []
    if path.is_file():
        for text in path.read_text(errors="replace").splitlines():
            try:
                row = json.loads(text)
            except ValueError:
                continue
            if isinstance(row, dict) and "step" in row:
                rows.append(row)
    return rows


def truncate_rows(path: Path, step: int) -> None:
    """Drop lines after ``step`` and torn ones, atomically."""
    if not path.is_file():
        return
    kept = [row for row in read_metrics(path) if row["step"] <= step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, data: Any) -> None:
    """Indented JSON, whole or not at all; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(data, indent=2) + "\n")
