"""``vla-rl bench all``: the rows of every comparison with peers in one table and one picture.

Each benchmark is a command of its own; what has been measured is kept (``again=true`` measures anew), so that it can be
stopped and continued.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vla_rl.config import compose
from vla_rl.runtime.metrics import write_json, write_text
from vla_rl.runtime.stages import call, chosen, written


def run(overrides: list[str]) -> int:
    """Measure what is missing; write table, picture and JSON after every benchmark."""
    config = compose("bench_all", overrides)
    out = Path(config.out)
    for part in chosen("only", config.only, config.parts):
        file = out / f"{part}.json"
        if config.again or not file.is_file():
            log = Path(config.work) / f"{part}.log"
            call(["bench", part, *config.parts[part], f"json={file}"], log)
        write_all(config)
    write_all(config)
    print(f"wrote {out / 'README.md'}")
    return 0


def write_all(config: Any) -> None:
    """``results.json``, ``README.md`` and ``ratios.svg`` of whatever has been measured."""
    out = Path(config.out)
    found: dict[str, dict[str, Any]] = {}
    for part in config.parts:
        file = out / f"{part}.json"
        if file.is_file():
            found |= {row["name"]: row for row in json.loads(file.read_text())["rows"]}
    rows = [found[name] | {"least": config.rows[name].get("least")} for name in config.rows if name in found]
    write_json(out / "results.json", {"rows": rows})
    write_text(out / "README.md", page(rows, config))
    if rows:
        picture(rows, out / "ratios.svg")


def page(rows: list[dict[str, Any]], config: Any) -> str:
    """The table, in the order of the configuration."""
    lines = [
        "# Side by side with peers",
        "",
        "`vla-rl bench all`: both sides of a row by turns on one machine, geometric mean of the paired ratios with its 95 % "
        "interval. Above 1 we are faster, or send less. CPU only.",
        "",
        "![ratios](ratios.svg)",
        "",
        "| row | what | against | ours | theirs | ratio | at least |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        asked = config.rows[row["name"]]
        low, high = row["ratio95"]
        least = row["least"]
        goal = "-" if least is None else f"{least:g}: {'yes' if row['ratio'] >= least else '**no**'}"
        lines.append(
            f"| `{row['name']}` | {asked.what} | {asked.against} | {row['ours']:.4g} {row['unit']} | {row['peer']:.4g} | "
            f"{row['ratio']:.2f} ({low:.2f}-{high:.2f}) | {goal} |"
        )
    missing = [name for name in config.rows if name not in {row["name"] for row in rows}]
    if missing:
        lines += ["", "Not measured here: " + ", ".join(f"`{name}`" for name in missing) + "."]
    return written(lines, Path(config.out))


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Ratios with their intervals on a logarithmic axis, and a tick where each should be at least."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "vla_rl"  # the same picture from the same rows
    height = 0.4 * len(rows) + 1.2
    figure, axes = plt.subplots(figsize=(8, height), layout="constrained")
    places = list(range(len(rows), 0, -1))
    ratios = [row["ratio"] for row in rows]
    errors = [
        [max(0.0, r["ratio"] - r["ratio95"][0]) for r in rows],
        [max(0.0, r["ratio95"][1] - r["ratio"]) for r in rows],
    ]
    axes.errorbar(ratios, places, xerr=errors, fmt="o", capsize=3, label="measured, 95 % interval")
    axes.plot([row["least"] for row in rows], places, "|", markersize=14, color="tab:red", label="at least")
    axes.axvline(1.0, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(places, [row["name"] for row in rows])
    axes.set_xlabel("times as fast (or as small)")
    axes.legend(loc="lower right")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
