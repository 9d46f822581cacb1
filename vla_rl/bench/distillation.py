"""``vla-rl bench distillation``: many specialists into one token VLA.

The specialists of ``vla-rl bench data_study`` (one per task, on the simulator's state) teach a student that sees pictures and
proprioception: on-policy distillation by several objectives, cloning of the specialists' successes, and token PPO, all from the
same student. Every part is a ``vla-rl`` command of its own, kept once finished: stopped at any moment, the same command goes on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vla_rl.bench.data_study import HUMAN, recorded, train_experts
from vla_rl.bench.distillation_table import write_table
from vla_rl.bench.steps import call, chosen, trained, workers
from vla_rl.config import compose

CLONING = "cloning"


def run(overrides: list[str]) -> int:
    """Make what is missing and write the table after every run."""
    config = compose("bench_distillation", overrides)
    study = compose("bench_data_study", list(config.study))
    names = chosen("only", config.only, study.tasks)
    algorithms = chosen("algorithms", config.algorithms, [CLONING, *config.runs])
    work, log = Path(config.work), Path(config.work) / "log.txt"
    for name in names:
        train_experts(study, name, [config.teacher])
        for source in (HUMAN, config.teacher):
            recorded(study, name, source)
    env = environment(config, study, names)
    paths = ",".join(
        f"{study.tasks[name].id}:{study.work}/{name}/{config.teacher}-{study.seed}" for name in names
    )
    specialists = "{" + paths + "}"
    judged(work / "specialists.json", env, ["policy=specialists", f"policy.paths={specialists}"], config)
    student = work / "student"
    cloned(student, study, names, HUMAN, list(config.student), log)
    judged(work / "student.json", env, policy_of(config, student), config)
    for seed in config.seeds:
        for algorithm in algorithms:
            if algorithm == CLONING:
                out = work / f"{CLONING}-{seed}"
                settings = [f"train.type={student}", *config.cloning, f"train.seed={seed}"]
                cloned(out, study, names, config.teacher, settings, log)
                judged(work / f"{CLONING}-{seed}.json", env, policy_of(config, out), config)
            else:
                _train(config, env, specialists, algorithm, int(seed))
            write_table(config, names)
    write_table(config, names)
    return 0


def environment(config: Any, study: Any, names: list[str]) -> list[str]:
    """Overrides of an environment with one row per task."""
    ids = ",".join(study.tasks[name].id for name in names)
    return [
        "env=metaworld",
        f"env.ids=[{ids}]",
        f"env.num_envs={len(names)}",
        f"env.max_episode_steps={config.limit}",
        f"env.cameras=[{study.camera}]",
        f"env.image_size={study.image_size}",
        workers(config.num_workers),
    ]


def policy_of(config: Any, folder: Path) -> list[str]:
    """Overrides of a policy."""
    return ["policy=lerobot", f"policy.path={folder}", f"policy.horizon={config.horizon}"]


def cloned(out: Path, study: Any, names: list[str], source: str, settings: list[str], log: Path) -> None:
    """A policy from one origin's recordings of all tasks."""
    if (out / "model.safetensors").is_file() and not (out / "training.safetensors").is_file():
        return
    data = ",".join(str(recorded(study, name, source)) for name in names)
    call(["pretrain", f"datasets=[{data}]", f"out={out}", "threads=1", *settings], log)


def judged(file: Path, env: list[str], policy: list[str], config: Any) -> dict[str, Any]:
    """Success of a policy on the episodes that every run ends with."""
    if not file.is_file():
        asked = [f"episodes={config.episodes}", "seed=200000", f"json={file}"]
        call(["eval", *env, *policy, *asked], file.parent / "log.txt")
    return json.loads(file.read_text())


def _train(config: Any, env: list[str], specialists: str, algorithm: str, seed: int) -> None:
    work, settings = Path(config.work), list(config.runs[algorithm])
    if "algorithm=opd" in settings:
        settings.append(f"algorithm.teacher.paths={specialists}")
    arguments = [
        "experiment=bench",
        *env,
        "demonstrations=none",
        *policy_of(config, work / "student"),
        *settings,
        f"run.seed={seed}",
        f"run.steps={config.steps}",
        f"run.final_episodes={config.episodes}",
    ]
    trained(work / f"{algorithm}-{seed}", arguments)
