"""vla-rl data: look at data sets.

usage: vla-rl data compare DIR [DIR ...] [json=FILE]
       vla-rl data progress DIR [DIR ...] out=DIR [drop=0.03] [gamma=0.98] [horizon=8] [steps=3000]

  compare   smoothness (mean squared jerk), path length, variance across episodes, length, coverage and success of
            LeRobotDatasets of one robot, side by side; numbers of the state count by their range over all of them
  progress  a value of every frame by offline reinforcement learning from success and failure (GR-RL), and which frames lose
            more than drop of it within a chunk; vla-rl pretrain progress=DIR leaves those out

Examples:
  vla-rl data compare data/human data/gaussian data/diffusion json=quality.json
  vla-rl data progress data/human out=data/human-progress
"""

from __future__ import annotations

from pathlib import Path

from vla_rl.config import resolve_path
from vla_rl.errors import UserError

COLUMNS = {
    "episodes": "{:d}",
    "success": "{:.0%}",
    "length": "{:.1f}",
    "length_std": "{:.1f}",
    "jerk": "{:.3g}",
    "action_jerk": "{:.3g}",
    "path": "{:.2f}",
    "variance": "{:.4f}",
    "coverage": "{:.0%}",
}


def run(overrides: list[str]) -> int:
    """Print the table; write ``json`` when asked."""
    if overrides and overrides[0] == "progress":
        return _progress(overrides[1:])
    if not overrides or overrides[0] != "compare":
        raise UserError(
            "vla-rl data compare DIR ... or vla-rl data progress DIR ... out=DIR (vla-rl data --help)"
        )
    out = [word.removeprefix("json=") for word in overrides[1:] if word.startswith("json=")]
    names = [word for word in overrides[1:] if not word.startswith("json=")]
    for name in names:
        if "=" in name:
            raise UserError(f"{name}: vla-rl data compare takes folders and json=FILE")
    if not names:
        raise UserError("vla-rl data compare needs at least one LeRobotDataset folder")
    from rich.console import Console
    from rich.table import Table

    from vla_rl.data.quality import compare
    from vla_rl.runtime.metrics import write_json

    found = compare([resolve_path(name) for name in names])
    table = Table(box=None)
    table.add_column("")
    for column in COLUMNS:
        table.add_column(column.replace("_", " "), justify="right")
    for name, quality in zip(names, found, strict=True):
        values = quality.as_dict()
        cells = [form.format(values[c]) if values[c] is not None else "-" for c, form in COLUMNS.items()]
        table.add_row(name, *cells)
    Console(width=max(100, max(map(len, names)) + 100), highlight=False).print(table)
    if out:
        write_json(
            Path(out[0]), {name: quality.as_dict() for name, quality in zip(names, found, strict=True)}
        )
        print(f"wrote {out[0]}")
    return 0


def _progress(words: list[str]) -> int:
    """Learn progress, write value and mask of every frame, print what each data set loses."""
    from vla_rl.config import typed
    from vla_rl.data.progress import ProgressConfig, write
    from vla_rl.runtime.progress import track

    names = [w for w in words if "=" not in w]
    given = dict(w.split("=", 1) for w in words if "=" in w)
    out = given.pop("out", None)
    if not names or not out:
        raise UserError("vla-rl data progress needs LeRobotDataset folders and out=DIR")
    config = typed(ProgressConfig, given, prefix="")
    with track("progress", config.steps, unit="step") as bar:
        lost = write(
            [resolve_path(name) for name in names],
            config,
            Path(out),
            lambda step, loss: bar.update(step, loss=f"{loss:.4f}"),
        )
    for name, share in lost.items():
        print(f"{name}: {share:.1%} of the frames lose progress")
    print(f"wrote {out}")
    return 0
