"""``benchmarks/results/distillation``: table, figure and ``results.json`` from whatever has finished."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_rl.bench.diffusion_table import cell, costs, finished, pooled
from vla_rl.report.plots import line_plot
from vla_rl.runtime.metrics import write_json, write_text
from vla_rl.runtime.run_folder import read_metrics
from vla_rl.runtime.stages import written

TITLES = {
    "specialists": "specialists, one per task (teachers)",
    "student": "student before",
    "cloning": "cloning the specialists' successes",
    "cloning_rehearsed": "the same with the student's own recordings of the others among them",
    "forward_kept": "distillation, forward KL, earlier decisions kept",
    "forward_seen": "distillation, forward KL, towers warmed up on many scenes and frozen, asked within chunks",
    "reverse_kept": "distillation, reverse KL, earlier decisions kept",
    "reverse_rehearsed": "distillation, reverse KL, earlier decisions kept, and held to what it said in its own recordings of the others",
    "hard_kept": "distillation, hard labels, earlier decisions kept",
    "token_ppo": "token PPO",
}
RETAINED = "retained-"
"""Before a policy's name: the file of its success on tasks that are not distilled."""
CURVES = ("entropy", "agreement", "success")


def write_table(config: Any, names: list[str], cameras: Sequence[str]) -> None:
    """Join what has finished in ``config.work`` with the rows already in ``config.out``."""
    work, out = Path(config.work), Path(config.out)
    saved = out / "results.json"
    policies: dict[str, Any] = json.loads(saved.read_text())["policies"] if saved.is_file() else {}
    for name in ("specialists", "student"):
        if (work / f"{name}.json").is_file():
            policies[name] = {"0": _read(work / f"{name}.json") | _kept(work, name)}
    for file in sorted(work.glob("cloning*-*.json")):
        name, _, seed = file.stem.rpartition("-")
        policies.setdefault(name, {})[seed] = _read(file) | _kept(work, file.stem)
    curves: dict[str, Any] = {key: {} for key in CURVES}
    for name in config.runs:
        for seed, run in finished(work, name):
            policies.setdefault(name, {})[seed] = (
                _read(run / "final.json") | costs(run) | _kept(work, run.name)
            )
            rows = read_metrics(run / "metrics.jsonl")
            for key in CURVES:
                line = [(float(r["step"]), float(r[key])) for r in rows if key in r]
                curves[key].setdefault(name, line)
    rows = [{"name": n, "ours": pooled(p)["rate"], "unit": "success rate"} for n, p in policies.items()]
    write_json(saved, {"rows": rows, "policies": policies})
    for key, series in curves.items():
        if picture := line_plot(f"{key}, first seed", "environment steps", series, percent=key != "entropy"):
            write_text(out / f"{key}.svg", picture)
    write_text(out / "README.md", page(config, names, cameras, policies))
    print(f"wrote {out / 'README.md'}", flush=True)


def _read(file: Path) -> dict[str, Any]:
    found = json.loads(file.read_text())
    tasks = {task: part["rate"] for task, part in found["per_task"].items()}
    return {key: found[key] for key in ("successes", "episodes", "rate")} | {"per_task": tasks}


def _kept(work: Path, name: str) -> dict[str, Any]:
    """A policy's success on tasks that are not distilled, if it was counted."""
    file = work / f"{RETAINED}{name}.json"
    return {"retained": _read(file)} if file.is_file() else {}


def page(config: Any, names: list[str], cameras: Sequence[str], policies: dict[str, Any]) -> str:
    """The tables."""
    order = [name for name in TITLES if name in policies] + [name for name in policies if name not in TITLES]
    kept = {n: {k: s["retained"] for k, s in p.items() if "retained" in s} for n, p in policies.items()}
    retained = any(kept.values())
    others = (
        f" *Not distilled*: of {config.retained_episodes} episodes of tasks that the student was cloned on and nobody taught."
        if retained
        else ""
    )
    lines = [
        "# Specialists into one token VLA",
        "",
        f"`vla-rl bench distillation`: success over {config.episodes} episodes of {len(names)} Meta-World tasks, 95 % Wilson "
        f"interval over all seeds' episodes; in brackets each seed's success in percent; the rest are means over seeds. The student sees "
        f"{' and '.join(cameras)} and proprioception, its teachers the simulator's state.{others}",
        "",
        f"| policy | success |{' not distilled |' if retained else ''} minutes | environment steps | episodes played |",
        "|---" * (5 + retained) + "|",
    ]
    for name in order:
        seeds = policies[name]
        minutes, steps = _mean(seeds, "train_seconds", 60), _mean(seeds, "env_steps")
        played = _mean(seeds, "train_episodes")
        elsewhere = f" {cell(kept[name]) if kept[name] else '-'} |" if retained else ""
        lines.append(
            f"| {TITLES.get(name, name)} | {cell(seeds)} |{elsewhere} {minutes} | {steps} | {played} |"
        )
    lines += ["", "Success in percent, mean over seeds:", "", "| task | " + " | ".join(order) + " |"]
    lines.append("|---" * (1 + len(order)) + "|")
    lines += _by_task(policies, order, "")
    lines += _by_task(kept, order, " (not distilled)")
    lines += ["", "![entropy](entropy.svg)", "![agreement](agreement.svg)", "![success](success.svg)"]
    return written(lines, Path(config.out))


def _mean(seeds: dict[str, Any], key: str, unit: float = 1) -> str:
    """What a policy's seeds took, in the mean; - for what did not play."""
    found = [seed[key] / unit for seed in seeds.values() if key in seed]
    return f"{sum(found) / len(found):.0f}" if found else "-"


def _by_task(policies: dict[str, Any], order: list[str], note: str) -> list[str]:
    """A line for each task, of ``order``'s success there in percent."""
    tasks = sorted({task for seeds in policies.values() for s in seeds.values() for task in s["per_task"]})
    lines = []
    for task in tasks:
        cells = []
        for name in order:
            rates = [s["per_task"][task] for s in policies[name].values() if task in s["per_task"]]
            cells.append(f"{100 * sum(rates) / len(rates):.0f}" if rates else "-")
        lines.append(f"| {task}{note} | " + " | ".join(cells) + " |")
    return lines
