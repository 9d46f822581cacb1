"""``benchmarks/results/diffusion/README.md`` and ``results.json`` from whatever runs have finished.

Runs are kept seed by seed, so that several sessions or machines can fill one table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vla_rl.critic.turns import TURNS
from vla_rl.runtime.metrics import read_metrics, write_json, write_text
from vla_rl.runtime.stages import written
from vla_rl.stats import wilson

TITLES = {
    "dppo": "DPPO",
    "flow_dppo": "flow-DPPO",
    "dsrl": "DSRL",
    "residual": "residual RL",
    "gaussian_ppo": "Gaussian PPO",
    "token_ppo": "token PPO",
    "opd": "on-policy distillation",
    "true_reward": "true reward",
    "critic": "critic, guarded",
    "critic_near": "critic that has seen misses, guarded",
    "turns": "critic and policy in turns",
    "turns_quick": "critic and policy in turns, 200 episodes",
    "turns_no_expert": "critic and policy in turns, no expert recorded, 200 episodes",
    "turns_residual": "critic and residual in turns",
    "turns_residual_quick": "critic and residual in turns, 200 episodes",
    "turns_candidates_quick": "critic and residual of four candidates in turns, 200 episodes",
    "second_turn": "residual, critic of a second turn, 200 episodes",
    "true_residual": "residual, true reward",
    "unguarded_residual": "residual, critic unguarded",
    "unguarded": "critic, unguarded",
}
AT_STEPS = (30_000, 60_000, 120_000, 250_000)
"""Environment steps at which training success is compared."""

KEPT = ("successes", "episodes", "rate", "wilson95")


def write_table(config: Any) -> None:
    """Collect finished runs of ``config.work``, join them with those already in ``config.out``; write both files."""
    tasks = joined(config, _found)
    save(Path(config.out), tasks, page(tasks, config))


def joined(config: Any, found: Callable[[Path, Any], dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Task -> column -> seed -> result: what ``found`` finds in each task's folder, over what ``config.out`` has on record."""
    saved = Path(config.out) / "results.json"
    tasks: dict[str, Any] = json.loads(saved.read_text())["tasks"] if saved.is_file() else {}
    for name in config.tasks:
        for column, runs in found(Path(config.work) / name, config).items():
            tasks.setdefault(name, {}).setdefault(column, {}).update(runs)
    return {name: tasks[name] for name in config.tasks if name in tasks}


def save(out: Path, tasks: dict[str, Any], text: str) -> None:
    """``results.json`` of tasks, columns and seeds, and the page ``text``."""
    rows = [
        {"name": f"{name}: {column}", "ours": pooled(runs)["rate"], "unit": "success rate"}
        for name, row in tasks.items()
        for column, runs in row.items()
    ]
    write_json(out / "results.json", {"rows": rows, "tasks": tasks})
    write_text(out / "README.md", text)


def _found(folder: Path, config: Any) -> dict[str, dict[str, Any]]:
    """Column -> seed -> result; a base has one, under ``base``."""
    columns: dict[str, dict[str, Any]] = {}
    for base in config.bases:
        if (folder / f"{base}.json").is_file():
            columns[base] = {"base": final(folder / f"{base}.json")}
    for algorithm in config.runs:
        for seed, run in finished(folder, algorithm):
            policy = policy_of(run)
            assert policy is not None
            result = final(policy / "final.json") | costs(run) | {"training_success": while_training(policy)}
            columns.setdefault(algorithm, {})[seed] = result
    return columns


def finished(folder: Path, algorithm: str) -> Iterator[tuple[str, Path]]:
    """Seed and folder of each of its runs that are over."""
    for run in sorted(folder.glob(f"{algorithm}-*")):
        if policy_of(run) is not None:
            yield run.name.rpartition("-")[2], run


def own_settings(task: Any, column: str) -> list[str]:
    """What a task of the configuration sets otherwise than the column's recipe."""
    return list(task.get("own", {}).get(column, ()))


def policy_of(run: Path) -> Path | None:
    """The run folder of what ``run``, a training or a critic and a policy in turns, ended with; None = it is not over."""
    if turns := _turns(run):
        return run / Path(turns["policy"]).name if turns["over"] else None
    return run if all((run / name).is_file() for name in ("final.json", "report.json")) else None


def _turns(run: Path) -> dict[str, Any]:
    """What a critic and a policy in turns have come to so far; of a single training nothing."""
    return json.loads((run / TURNS).read_text()) if (run / TURNS).is_file() else {}


def costs(run: Path) -> dict[str, Any]:
    """What a finished run's training took; of several turns together, with how many they were."""
    turns = _turns(run).get("turns", [])
    parts = [run / Path(turn["run"]).name for turn in turns] or [run]
    reports = [json.loads((part / "report.json").read_text()) for part in parts]
    taken = {key: sum(r[key] for r in reports) for key in ("train_seconds", "env_steps")}
    taken["train_episodes"] = sum(r["episodes"] for r in reports)
    return taken | ({"turns": len(turns), "stopped": reports[-1].get("stopped")} if turns else {})


def curve(run: Path) -> list[tuple[int, float]]:
    """(environment step, success of the newest episodes, exploration and all) of a run."""
    rows = read_metrics(run / "metrics.jsonl")
    return [(int(row["step"]), float(row["success"])) for row in rows if row.get("success") is not None]


def while_training(run: Path, steps: Sequence[int] = AT_STEPS) -> dict[str, float]:
    """Success of a run's newest episodes at each of ``steps`` that it has reached."""
    success = curve(run)
    return {
        str(at): [rate for step, rate in success if step <= at][-1]
        for at in steps
        if success and success[0][0] <= at <= success[-1][0]
    }


def final(file: Path) -> dict[str, Any]:
    """What is kept of an evaluation."""
    data = json.loads(file.read_text())
    return {key: data[key] for key in KEPT}


def pooled(runs: dict[str, Any]) -> dict[str, Any]:
    """Several seeds' evaluations as one."""
    successes, episodes = (sum(r[key] for r in runs.values()) for key in ("successes", "episodes"))
    return {"rate": successes / episodes, "wilson95": wilson(successes, episodes)}


def page(tasks: dict[str, Any], config: Any) -> str:
    """The table, and what each cell's runs took."""
    bases, columns = list(config.bases), list(config.runs)
    steps = ", ".join(
        f"{run.steps} ({TITLES.get(str(name), str(name))})" for name, run in config.runs.items()
    )
    titles = [*(f"{b} base" for b in bases), *(TITLES.get(str(c), str(c)) for c in columns)]
    lines = [
        f"# {config.title}",
        "",
        f"`vla-rl bench {config.command}`: success of each seed's final policy over {config.episodes} episodes, after "
        f"{steps} environment steps; one recipe for all tasks. 95 % Wilson interval over all seeds' "
        f"episodes; in brackets each seed's success in percent. Bases: {config.about}",
        *_own(config),
        "",
        "| task | " + " | ".join(titles) + " |",
        "|---" * (len(titles) + 1) + "|",
    ]
    for name in config.tasks:
        row = tasks.get(name, {})
        cells = [cell(row[c], c in bases) if c in row else "not run" for c in (*bases, *columns)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Training, mean over seeds (one core, other work beside it): minutes, environment steps, episodes.",
        "",
        "| task | " + " | ".join(TITLES.get(str(c), str(c)) for c in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name in config.tasks:
        row = tasks.get(name, {})
        lines.append(f"| {name} | " + " | ".join(_cost(row[c]) if c in row else "-" for c in columns) + " |")
    lines += _equal_steps(tasks, columns)
    return written(lines, Path(config.out))


def _own(config: Any) -> list[str]:
    """What tasks set otherwise than the recipes."""
    lines = [
        f"- {name}, {TITLES.get(str(column), str(column))}: {', '.join(f'`{o}`' for o in settings)}"
        for name, task in config.tasks.items()
        for column, settings in task.get("own", {}).items()
    ]
    return ["", "Otherwise than the recipe:", "", *lines] if lines else []


def _equal_steps(tasks: dict[str, Any], columns: list[str]) -> list[str]:
    """Training success after the same number of environment steps, where it is on record."""
    lines: list[str] = []
    for name, row in tasks.items():
        for at in map(str, AT_STEPS):
            found = [
                [
                    run["training_success"][at]
                    for run in row.get(column, {}).values()
                    if at in run.get("training_success", {})
                ]
                for column in columns
            ]
            if any(found):
                cells = [f"{100 * sum(f) / len(f):.0f} % ({len(f)})" if f else "-" for f in found]
                lines.append(f"| {name}, {at} | " + " | ".join(cells) + " |")
    if not lines:
        return []
    return [
        "",
        "Success of the newest episodes while training (exploration and all) after equal environment steps; in brackets the "
        "number of seeds on record.",
        "",
        "| task, steps | " + " | ".join(TITLES.get(str(c), str(c)) for c in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
        *lines,
    ]


def cell(runs: dict[str, Any], base: bool = False) -> str:
    """Success in percent with its interval, and each seed's unless it is a base's."""
    part = pooled(runs)
    low, high = part["wilson95"]
    seeds = "" if base else " [" + ", ".join(f"{100 * r['rate']:.0f}" for _, r in sorted(runs.items())) + "]"
    return f"{100 * part['rate']:.0f} % ({100 * low:.0f}-{100 * high:.0f})" + seeds


def _cost(runs: dict[str, Any]) -> str:
    def mean(key: str) -> float:
        return sum(r[key] for r in runs.values()) / len(runs)

    return f"{mean('train_seconds') / 60:.1f} min, {mean('env_steps'):.0f}, {mean('train_episodes'):.0f}"
