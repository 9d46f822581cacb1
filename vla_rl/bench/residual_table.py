"""``benchmarks/results/residual/README.md`` and ``results.json`` from whatever runs have finished."""

from __future__ import annotations

import json
from math import exp, log, sqrt
from pathlib import Path
from typing import Any

from vla_rl.runtime.metrics import write_json, write_text
from vla_rl.runtime.stages import written
from vla_rl.stats import wilson

TITLES = {"residual_td3": "residual RL", "rlpd": "RLPD", "filtered_bc": "filtered BC"}


def write_table(config: Any) -> None:
    """Collect finished runs in ``config.work`` and demo reports in ``config.out``; write both files."""
    tasks: dict[str, Any] = {}
    for name in config.tasks:
        folder = Path(config.work) / name
        if not (folder / "base.json").is_file():
            continue
        row: dict[str, Any] = {"base": counts([folder / "base.json"])}
        for algorithm in TITLES:
            found = sorted(folder.glob(f"{algorithm}-*/final.json"))
            if found:
                row[algorithm] = counts(found)
        tasks[name] = row
    out = Path(config.out)
    saved = out / "results.json"
    if saved.is_file():  # runs of another machine or of an emptied work folder are kept
        tasks = json.loads(saved.read_text())["tasks"] | tasks
    tasks = {name: tasks[name] for name in config.tasks if name in tasks}
    write_json(saved, {"rows": compared(tasks), "tasks": tasks})
    demos = {f.parent.name: json.loads(f.read_text()) for f in sorted(out.glob("demo-*/report.json"))}
    write_text(out / "README.md", _page(tasks, demos, config))


def counts(files: list[Path]) -> dict[str, Any]:
    """Successes of several evaluations together, and each one's rate."""
    parts = [json.loads(file.read_text()) for file in files]
    successes, episodes = (sum(p[key] for p in parts) for key in ("successes", "episodes"))
    return {
        "successes": successes,
        "episodes": episodes,
        "rate": successes / episodes,
        "wilson95": list(wilson(successes, episodes)),
        "rates": [p["rate"] for p in parts],
    }


def compared(tasks: dict[str, Any]) -> list[dict[str, Any]]:
    """Residual RL against the better baseline of each task; the ratio's interval is Katz's, half a success added."""
    rows = []
    for name, row in tasks.items():
        peers = {a: row[a] for a in ("rlpd", "filtered_bc") if a in row}
        if "residual_td3" not in row or not peers:
            continue
        ours, best = row["residual_td3"], max(peers, key=lambda a: peers[a]["rate"])
        a, b = ((p["successes"] + 0.5, p["episodes"] + 0.5) for p in (ours, peers[best]))
        ratio = (a[0] / a[1]) / (b[0] / b[1])
        spread = 1.959964 * sqrt(1 / a[0] - 1 / a[1] + 1 / b[0] - 1 / b[1])
        rows.append(
            {
                "name": f"{name}: residual RL and {TITLES[best]}",
                "ours": ours["rate"],
                "peer": peers[best]["rate"],
                "unit": "success rate",
                "ratio": ratio,
                "ratio95": [exp(log(ratio) - spread), exp(log(ratio) + spread)],
            }
        )
    return rows


def _page(tasks: dict[str, Any], demos: dict[str, Any], config: Any) -> str:
    lines = ["# Residual off-policy RL: results", ""]
    if demos:
        lines += [
            "## The demo",
            "",
            '`make demo ARGS="name=... seed=N"`: shipped SmolVLA, three tasks, two CPU cores. The folders hold '
            "configuration, metrics and report of each run.",
            "",
            "| run | base | after residual RL | training | in all | environment steps | peak memory |",
            "|---|---|---|---|---|---|---|",
            *(_demo(name, report) for name, report in demos.items()),
            "",
        ]
    lines += [
        "## Tasks, at equal environment steps",
        "",
        f"`vla-rl bench residual`: success of each seed's final policy over {config.episodes} episodes after "
        f"{config.steps} environment steps; one recipe, the same settings for every task. 95 % Wilson "
        "interval over all seeds' episodes; in brackets each seed's success in percent. Base: LeRobot's ACT on "
        "simulator state, cloned from a few noisy demonstrations; every algorithm gets "
        f"{config.shown} demonstrations.",
        "",
        "| task | base | " + " | ".join(TITLES.values()) + " |",
        "|---" * (len(TITLES) + 2) + "|",
    ]
    for name in config.tasks:
        row = tasks.get(name, {})
        cells = [_cell(row[c], c) if c in row else "not run" for c in ("base", *TITLES)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return written(lines, Path(config.out))


def _demo(name: str, report: dict[str, Any]) -> str:
    base, final = (_rate(report[key]) for key in ("base", "final"))
    minutes = [f"{report[key] / 60:.1f} min" for key in ("train_seconds", "wall_seconds")]
    cells = [base, final, *minutes, str(report["env_steps"]), f"{report['peak_rss_mb'] / 1000:.1f} GB"]
    return f"| [{name}]({name}) | " + " | ".join(cells) + " |"


def _rate(part: dict[str, Any]) -> str:
    low, high = part["wilson95"]
    return f"{100 * part['rate']:.0f} % ({100 * low:.0f}-{100 * high:.0f})"


def _cell(part: dict[str, Any], column: str) -> str:
    seeds = "" if column == "base" else " [" + ", ".join(f"{100 * r:.0f}" for r in part["rates"]) + "]"
    return _rate(part) + seeds
