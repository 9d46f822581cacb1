"""Clones of a data set with bad episodes in it, against clones of what a critic leaves of it; every part is a ``vla-rl`` command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vla_rl.bench.diffusion import TINY
from vla_rl.bench.diffusion_table import cell, pooled
from vla_rl.config import compose
from vla_rl.runtime.metrics import write_json, write_text
from vla_rl.runtime.stages import ON_STATE, call, chosen, counted, pretrained, workers, written

KINDS = ("all", "filtered")


def run(overrides: list[str]) -> int:
    """Run what is missing and write the table after every clone."""
    config = compose("bench_filtering", overrides)
    for seed in config.seeds:
        for name in chosen("only", config.only, config.tasks):
            task, folder = config.tasks[name], Path(config.work) / name
            env = [*task.env, "env.num_envs=6", workers(config.num_workers)]
            data = _recorded(config, folder, env, task.camera)
            if not (folder / "scores" / "progress.json").is_file():
                listed = ",".join(map(str, data))
                call(
                    [
                        "critic",
                        "score",
                        f"path={config.critic}",
                        f"datasets=[{listed}]",
                        f"out={folder}/scores",
                    ],
                    folder / "log.txt",
                )
            for kind in KINDS:
                out = folder / f"{kind}-{seed}"
                more = [f"train.progress={folder}/scores"] if kind == "filtered" else []
                overridden = ",".join([TINY, "objective:flow_matching"])
                settings = [
                    "train.type=dit_nano",
                    ON_STATE,
                    "train.lr=0.001",
                    "train.batch_size=64",
                    f"train.seed={seed}",
                ]
                settings += [f"train.chunk_size={config.horizon}", f"train.steps={config.bc_steps}", *more]
                pretrained(out, data, [*settings, "train.overrides={" + overridden + "}"], folder / "log.txt")
                policy = [
                    "policy=lerobot",
                    f"policy.path={out}",
                    f"policy.horizon={config.horizon}",
                    "policy.flow_steps=5",
                ]
                counted(
                    folder / f"{kind}-{seed}.json", [*env, "env.cameras=[]"], policy, episodes=config.episodes
                )
                _table(config)
    return 0


def _recorded(config: Any, folder: Path, env: list[str], camera: str) -> list[Path]:
    """Good and bad episodes, as data sets of their own."""
    asked = {
        "good": [f"policy.noise={config.good.noise}", f"episodes={config.good.episodes}", "seed=710000"],
        "bad": [
            f"policy.noise={config.bad.noise}", f"episodes={config.bad.episodes}", f"attempts={config.bad.episodes}", "seed=720000",
            "only_success=false",
        ],
    }  # fmt: skip
    for name, settings in asked.items():
        if not (folder / name / "meta" / "info.json").is_file():
            words = [f"env.cameras=[{camera}]", "policy=expert", f"out={folder / name}", *settings]
            call(["record", *env, *words], folder / "log.txt")
    return [folder / name for name in asked]


def _table(config: Any) -> None:
    out, rows, lines = Path(config.out), [], []
    tasks: dict[str, Any] = (
        json.loads((out / "results.json").read_text())["tasks"] if (out / "results.json").is_file() else {}
    )
    for name in config.tasks:
        folder = Path(config.work) / name
        for kind in KINDS:
            for file in sorted(folder.glob(f"{kind}-*.json")):
                tasks.setdefault(name, {}).setdefault(kind, {})[file.stem.rpartition("-")[2]] = json.loads(
                    file.read_text()
                )
        if (folder / "scores" / "progress.json").is_file():
            scores = json.loads((folder / "scores" / "progress.json").read_text())
            kept = {
                part: sum(e["kept"] for e in scores["episodes"] if f"/{part}," in e["name"])
                for part in ("good", "bad")
            }
            tasks.setdefault(name, {})["kept"] = kept
    lines += [
        "# Cloning what a critic leaves",
        "",
        f"`vla-rl bench filtering`: {config.good.episodes} good episodes of the scripted expert and {config.bad.episodes} of it disturbed (noise "
        f"{config.bad.noise}), which fail for the most part; clones of all of them, and of what `vla-rl critic score` keeps. Success over "
        f"{config.episodes} episodes per seed, 95 % Wilson interval over all; in brackets each seed's.",
        "",
        "| task | kept of good | kept of bad | cloned from all | from what the critic keeps |",
        "|---|---|---|---|---|",
    ]
    for name, row in tasks.items():
        kept = row.get("kept", {"good": "-", "bad": "-"})
        cells = [cell(row[kind]) if kind in row else "not run" for kind in KINDS]
        lines.append(f"| {name} | {kept['good']} | {kept['bad']} | " + " | ".join(cells) + " |")
        rows += [
            {"name": f"{name}: {k}", "ours": pooled(row[k])["rate"], "unit": "success rate"}
            for k in KINDS
            if k in row
        ]
    write_json(out / "results.json", {"rows": rows, "tasks": tasks})
    write_text(out / "README.md", written(lines, out))
