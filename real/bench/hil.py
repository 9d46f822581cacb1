"""``vla-rl bench hil``: how many episodes a poor policy needs to become a good one, with and without interventions.

In the simulated arm's lockstep twin, so that seeds cost minutes: the scripted teleoperator takes over when an episode has
not succeeded in time, its steps also count as demonstrations (HIL-SERL). Evaluations are of the policy alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from real.bench.sim_arm import prepare
from vla_rl.config import compose
from vla_rl.runtime.metrics import read_metrics, write_json
from vla_rl.runtime.stages import call

BOTH = ("none", "overseer")


def run(overrides: list[str]) -> int:
    """Train what is missing, write the table."""
    config = compose("bench_hil", overrides)
    given, work, out = Path(config.sim_arm), Path(config.work), Path(config.out)
    settings = compose("bench_sim_arm", [f"work={given}"])
    prepare(settings)
    for seed in config.seeds:
        for teleop in config.only:
            train(config, settings, teleop, int(seed))
    found = {t: [result(work / f"{t}-{s}", config.reach) for s in config.seeds] for t in config.only}
    base = json.loads((given / "base-simulation.json").read_text())
    needed = {t: [r["episodes_needed"] for r in runs] for t, runs in found.items()}
    rows = [{"name": f"episodes_{t}", "ours": mean(values)} for t, values in needed.items()]
    both = [row["ours"] for row in rows]
    if len(both) == len(BOTH):
        rows.append({"name": "ratio", "ours": both[1] / both[0] if None not in both else None})
    write_json(out / "results.json", {"rows": rows, "base": base["rate"], "runs": found})
    (out / "table.md").write_text(table(config, base, found, rows))
    print((out / "table.md").read_text())
    return 0


def train(config: Any, settings: Any, teleop: str, seed: int) -> None:
    """One run, unless it is there already; an unfinished one is continued."""
    folder = Path(config.work) / f"{teleop}-{seed}"
    if (folder / "final.json").is_file():
        return
    steps = f"run.steps={config.steps[teleop]}"
    arguments = [f"resume={folder}", steps]
    if not (folder / "config.yaml").is_file():
        arguments = [
            "experiment=bench",
            *("env=sim_arm", "env.num_envs=4", "env.num_workers=0", "env.cameras=[]"),
            *(
                "algorithm=residual_td3",
                f"policy.path={config.sim_arm}/base",
                f"policy.horizon={settings.horizon}",
            ),
            f"demonstrations.episodes={config.demos}",
            *config.settings,
            f"teleop={teleop}",
            *(config.help if teleop == "overseer" else []),
            *(f"run.root={config.work}", f"run.name={teleop}-{seed}", f"run.seed={seed}"),
            *(steps, f"run.eval_every={config.every}", "run.eval_env=own"),
            *(f"run.eval_episodes={config.eval_episodes}", f"run.final_episodes={config.episodes}"),
            "run.final_seed=200000",
        ]
    call(["train", *arguments], Path(config.work) / f"{teleop}-{seed}.log")


def result(run: Path, reach: float) -> dict[str, Any]:
    """Episodes played until the first evaluation at ``reach`` or more, and what came after."""
    played, needed, steps, curve = 0, None, None, []
    for row in read_metrics(run / "metrics.jsonl"):
        played = row.get("episodes", played)
        if "evaluation" in row:
            curve.append([row["step"], played, row["evaluation"]["rate"]])
            if needed is None and row["evaluation"]["rate"] >= reach:
                needed, steps = played, row["step"]
    final = json.loads((run / "final.json").read_text())
    kept = {key: final[key] for key in ("successes", "episodes", "rate", "wilson95")}
    return {"run": run.name, "episodes_needed": needed, "steps_needed": steps, "curve": curve, "final": kept}


def mean(values: list[int | None]) -> float | None:
    """None when one of them is."""
    numbers = [v for v in values if v is not None]
    return sum(numbers) / len(numbers) if len(numbers) == len(values) else None


def table(config: Any, base: dict[str, Any], found: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The table of the results."""
    lines = [
        "# With and without interventions",
        "",
        f"`vla-rl bench hil demos={config.demos} settings=[{','.join(config.settings)}]`: residual RL on the simulated arm's lockstep twin from a base of {base['rate']:.0%} "
        f"({base['episodes']} episodes) and {config.demos} demonstrations. In the runs named overseer a scripted teleoperator helps "
        f"({', '.join(config.help)}). Every {config.every} environment steps the policy alone is evaluated over {config.eval_episodes} "
        f"episodes; at the end over {config.episodes} others.",
        "",
        f"| run | episodes until {config.reach:.0%} | environment steps until then | success at the end (95 % interval) |",
        "|---|---|---|---|",
    ]
    for runs in found.values():
        for one in runs:
            low, high = one["final"]["wilson95"]
            needed = one["episodes_needed"] if one["episodes_needed"] is not None else "not reached"
            steps = one["steps_needed"] if one["steps_needed"] is not None else "-"
            lines.append(
                f"| {one['run']} | {needed} | {steps} | {one['final']['rate']:.0%} ({low:.0%}-{high:.0%}) |"
            )
    lines += [
        "",
        "Means: "
        + ", ".join(f"{r['name']} {r['ours']:.2f}" if r["ours"] else f"{r['name']} -" for r in rows),
    ]
    return "\n".join([*lines, ""])
