"""``vla-rl bench rpd``: PPO that is drawn to a teacher against PPO alone, from the same poor student.

After "Refined Policy Distillation" (arXiv 2503.05833): the refined student should pass its teacher, and get as far as the teacher in
half of the steps that PPO needs. Every part is a ``vla-rl`` command of its own, kept once finished.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_rl.bench.diffusion_table import (
    cell,
    costs,
    curve,
    final,
    finished,
    joined,
    own_settings,
    save,
    while_training,
)
from vla_rl.config import compose
from vla_rl.keys import STATE, image_key
from vla_rl.runtime.stages import cloned, counted, demonstrated, fill, trained, workers, written

BASES = ("teacher", "student")
UNMOVED = "teacher_unmoved"
"""Column of a teacher that learned from pictures of a camera which has been moved since."""

AT_STEPS = (10_000, 25_000, 50_000, 75_000, 100_000)
"""Environment steps at which training success is compared."""


def run(overrides: list[str]) -> int:
    """Run what is missing and write the table after every run."""
    fill(compose("bench_rpd", overrides), _prepare, _train, write_table)
    return 0


def _env(config: Any, name: str, moved: bool = True) -> list[str]:
    """Overrides of a task's environment; its camera, if it has one, where it was ``moved`` to or where it was."""
    task = config.tasks[name]
    camera, shift = task.get("camera") or "", task.get("shift")
    shifted = [f"env.camera_shift={list(shift)}".replace(" ", "")] if shift and moved else []
    return [*task.env, "env.num_envs=8", f"env.cameras=[{camera}]", *shifted, workers(config.num_workers)]


def _policy(config: Any, folder: Path, base: str) -> list[str]:
    acting = [f"policy.{setting}" for setting in config[base].acting]
    return ["policy=lerobot", f"policy.path={folder}/{base}", f"policy.horizon={config.horizon}", *acting]


def _prepare(config: Any, name: str) -> None:
    """Demonstrations, teacher and student, and their success."""
    task, folder, env = config.tasks[name], Path(config.work) / name, _env(config, name)
    before, camera = _env(config, name, moved=False), task.get("camera")
    noise = task.get("noise", config.noise)
    demonstrated(folder, before, noise=noise, episodes=config.demos, camera=camera)
    for base in BASES:
        sizes = [f"train.chunk_size={config.horizon}", f"train.steps={config[base].steps}"]
        seeing = [] if camera is None else [f"train.inputs=[{image_key(camera)},{STATE}]"]
        own = task.get(base, ())
        cloned(folder, [*config[base].settings, *sizes, *seeing, *own], name=base)
        counted(folder / f"{base}.json", env, _policy(config, folder, base), episodes=config.episodes)
    if env != before:
        teacher = _policy(config, folder, "teacher")
        counted(folder / f"{UNMOVED}.json", before, teacher, episodes=config.episodes)


def _train(config: Any, name: str, algorithm: str, seed: int) -> None:
    folder = Path(config.work) / name
    settings = [s.format(folder=folder, horizon=config.horizon) for s in config.runs[algorithm]]
    arguments = [
        "experiment=bench",
        *_env(config, name),
        *_policy(config, folder, "student"),
        *settings,
        *config.learning,
        f"run.seed={seed}",
        f"run.steps={config.steps}",
        f"run.final_episodes={config.episodes}",
        *own_settings(config.tasks[name], algorithm),
    ]
    trained(folder / f"{algorithm}-{seed}", arguments)


def steps_until(success: list[tuple[int, float]], level: float, in_a_row: int = 3) -> int | None:
    """The first step from which ``in_a_row`` rows of a curve are at ``level`` or above; None = never."""
    for at in range(len(success) - in_a_row + 1):
        if all(rate >= level for _, rate in success[at : at + in_a_row]):
            return success[at][0]
    return None


def write_table(config: Any) -> None:
    """Join what has finished with what is on record; writes ``results.json`` and the page."""
    tasks = joined(config, _found)
    save(Path(config.out), tasks, page(tasks, config))


def _found(folder: Path, config: Any) -> dict[str, dict[str, Any]]:
    """Column -> seed -> result; nothing before both bases have been judged."""
    if not all((folder / f"{base}.json").is_file() for base in BASES):
        return {}
    judged = [name for name in (*BASES, UNMOVED) if (folder / f"{name}.json").is_file()]
    columns = {base: {"base": final(folder / f"{base}.json")} for base in judged}
    level = columns["teacher"]["base"]["rate"]
    for algorithm in config.runs:
        for seed, run_folder in finished(folder, algorithm):
            columns.setdefault(algorithm, {})[seed] = _result(run_folder, level)
    return columns


def _result(run_folder: Path, teacher: float) -> dict[str, Any]:
    return {
        **final(run_folder / "final.json"),
        **costs(run_folder),
        "training_success": while_training(run_folder, AT_STEPS),
        "steps_to_teacher": steps_until(curve(run_folder), teacher),
    }


def page(tasks: dict[str, Any], config: Any) -> str:
    """The tables."""
    bases = [UNMOVED, *BASES] if any(UNMOVED in row for row in tasks.values()) else [*BASES]
    columns = [*bases, *config.runs]
    lines = [
        "# Refined policy distillation",
        "",
        f"`vla-rl bench rpd`: success over {config.episodes} episodes after {config.steps} environment steps with sparse reward (or ManiSkill's dense one), 95 % "
        "Wilson interval over all seeds' episodes; in brackets each seed's success in percent. Teacher and student see the simulator's "
        f"state (in the rows *_moved pictures and proprioception); the teacher is a flow, cloned for {config.teacher.steps} steps from {config.demos} noisy demonstrations, the student a "
        f"Gaussian, cloned for {config.student.steps}. RPD and PPO differ in the teacher's term alone.",
        "",
        "| task | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, row in tasks.items():
        cells = [
            cell(row[c], c in bases) if c in row else "-" if c == UNMOVED else "not run" for c in columns
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Environment steps until the newest episodes, exploration and all, succeed as often as the teacher (seed by seed), then success after "
        "equal steps (mean over seeds).",
        "",
        "| task | run | steps to the teacher's success | " + " | ".join(map(str, AT_STEPS)) + " |",
        "|---" * (3 + len(AT_STEPS)) + "|",
    ]
    for name, row in tasks.items():
        for algorithm in config.runs:
            if algorithm in row:
                lines.append(
                    f"| {name} | {algorithm} | {_reached(row[algorithm])} | {_at_steps(row[algorithm])} |"
                )
    return written(lines, Path(config.out))


def _reached(runs: dict[str, Any]) -> str:
    steps = [run["steps_to_teacher"] for _, run in sorted(runs.items())]
    return ", ".join("never" if s is None else str(s) for s in steps)


def _at_steps(runs: dict[str, Any]) -> str:
    cells = []
    for step in map(str, AT_STEPS):
        found = [run["training_success"][step] for run in runs.values() if step in run["training_success"]]
        cells.append(f"{100 * sum(found) / len(found):.0f} %" if found else "-")
    return " | ".join(cells)
