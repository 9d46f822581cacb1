"""vla-rl data: look at data sets.

usage: vla-rl data compare DIR [DIR ...] [json=FILE]

  compare   smoothness (mean squared jerk), path length, variance across episodes, length, coverage and success of
            LeRobotDatasets of one robot, side by side; numbers of the state count by their range over all of them

Examples:
  vla-rl data compare data/human data/gaussian data/diffusion json=quality.json
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
    if not overrides or overrides[0] != "compare":
        raise UserError("vla-rl data compare DIR [DIR ...] is what there is (vla-rl data --help)")
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
