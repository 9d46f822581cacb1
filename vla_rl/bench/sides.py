"""Two programs measured by turns, each in a process and, where it needs one, a Python environment of its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vla_rl.errors import UserError
from vla_rl.runtime.metrics import write_json
from vla_rl.stats import ratio_row

ROOT = Path(__file__).parents[2]
"""What ``vla_rl`` is imported from, here and in a peer's environment."""


class Side:
    """A running ``vla_rl.bench.peers`` program.

    Args:
        module: its name in ``vla_rl.bench.peers``, or all of it with dots.
        settings: what it is to build; JSON.
        log: file for what it prints.
        python: its interpreter; None = this one.
        threads: of its libraries.

    Raises:
        UserError: it ended before it was ready, with its last line.
    """

    def __init__(
        self,
        module: str,
        settings: Mapping[str, Any],
        log: Path,
        python: Path | None = None,
        threads: int = 1,
    ) -> None:
        self.module, self.log = module, log
        log.parent.mkdir(parents=True, exist_ok=True)
        name = module if "." in module else f"vla_rl.bench.peers.{module}"
        command = [str(python or sys.executable), "-m", name, json.dumps(settings)]
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)}
        environment |= {f"{pool}_NUM_THREADS": str(threads) for pool in ("OMP", "MKL", "OPENBLAS")}
        with open(log, "w") as handle:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=handle,
                env=environment,
                text=True,
            )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def seconds(self, count: int) -> float:
        """What ``count`` items take it.

        Raises:
            UserError: it has died.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{count}\n")
            self.process.stdin.flush()
        except OSError:
            pass  # found out in the answer
        return float(self._answer())

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if line:
            return line
        lines = self.log.read_text().strip().splitlines()
        last = lines[-1] if lines else f"exit code {self.process.wait(10)}"
        raise UserError(f"the side {self.module} of the measurement ended, see {self.log}: {last}")

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait(10)


def compared(name: str, unit: str, ours: Side, peer: Side, *, count: int, rounds: int) -> dict[str, Any]:
    """A result's row: both sides by turns, ``rounds`` times, after one turn each that does not count."""
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    for number in range(rounds + 1):
        for key, side in (("ours", ours), ("peer", peer)):
            seconds = side.seconds(count)
            if number:
                rates[key].append(count / seconds)
    row = ratio_row(name, unit, rates["ours"], rates["peer"])
    print(line(row), flush=True)
    return row


def measured(
    config: Any,
    name: str,
    unit: str,
    ours: tuple[str, Mapping[str, Any]],
    peer: tuple[str, Mapping[str, Any]],
    count: int,
    python: Path | None = None,
) -> dict[str, Any]:
    """``compared`` of two programs (module, settings), started here as ``config`` says (``work``, ``threads``, ``rounds``);
    ``python`` is the peer's.
    """
    log, threads = Path(config.work), int(config.threads)
    with ExitStack() as stack:
        sides = []
        for role, (module, settings), interpreter in (("ours", ours, None), ("peer", peer, python)):
            side = Side(module, settings, log / f"{name}-{role}.log", interpreter, threads)
            stack.callback(side.close)
            sides.append(side)
        return compared(name, unit, *sides, count=count, rounds=int(config.rounds))


def keep(config: Any, rows: list[dict[str, Any]], **more: Any) -> None:
    """Write a benchmark's rows, and ``more`` beside them, into ``config.json``; None = nowhere.

    Rows of that file which were not measured this time (``only=``) stay, in their places.
    """
    if config.json:
        file = Path(config.json)
        before = json.loads(file.read_text())["rows"] if file.is_file() else []
        merged = {row["name"]: row for row in [*before, *rows]}
        write_json(file, {"rows": list(merged.values()), **more})
        print(f"wrote {config.json}")


def line(row: Mapping[str, Any]) -> str:
    """A row in words."""
    low, high = row["ratio95"]
    return (
        f"{row['name']}: {row['ours']:.4g} against {row['peer']:.4g} {row['unit']}, "
        f"{row['ratio']:.2f} times (95 % {low:.2f}-{high:.2f})"
    )


def environment(name: str, requirements: Sequence[str], work: Path) -> Path:
    """The interpreter of a throw-away environment with ``requirements``, made in ``work`` unless it is there.

    ``{torch}`` in a requirement is this environment's version.

    Raises:
        UserError: it cannot be made, with the installer's last line.
    """
    torch = version("torch").split("+")[0]
    requirements = [str(requirement).format(torch=torch) for requirement in requirements]
    mark = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()[:8]
    folder = (work / f"{name}-{mark}").resolve()
    python = folder / "bin" / "python"
    if (folder / "ready").is_file():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    print(f"making an environment with {', '.join(requirements)} in {work}", flush=True)
    uv = shutil.which("uv") or (str(ROOT / ".uv/bin/uv") if (ROOT / ".uv/bin/uv").is_file() else None)
    if uv:
        _install([uv, "venv", "-q", "--python", sys.executable, str(folder)])
        _install([uv, "pip", "install", "-q", "--python", str(python), *requirements])
    else:
        _install([sys.executable, "-m", "venv", str(folder)])
        _install([str(python), "-m", "pip", "install", "-q", *requirements])
    (folder / "ready").touch()
    return python


def _install(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise UserError(f"cannot install a peer ({' '.join(command[:4])} ...): {' '.join(last)}")
