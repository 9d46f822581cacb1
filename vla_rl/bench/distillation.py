"""``vla-rl bench distillation``: many specialists into one token VLA.

One specialist per task on the simulator's state (of ``vla-rl bench data_study``, or cloned from many demonstrations) teaches a student that sees pictures and
proprioception: on-policy distillation by several objectives, cloning of the specialists' successes, and token PPO, all from the
same student; what each of them keeps of tasks that the student knew and nobody teaches (``retained``). Every part is a ``vla-rl`` command of its own, kept once finished: stopped at any moment, the same command goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_rl.bench.data_study import (
    HUMAN,
    environment,
    environment_of,
    expert_of,
    pictures,
    recorded,
    train_experts,
)
from vla_rl.bench.distillation_table import RETAINED, write_table
from vla_rl.config import compose
from vla_rl.errors import UserError
from vla_rl.runtime.stages import ON_STATE, call, chosen, counted, demonstrated, pretrained, trained

CLONING, CLONING_REHEARSED = "cloning", "cloning_rehearsed"
"""Cloning of the specialists' successes: alone, and with the recordings of what is retained among them."""

CLONED = "cloned"
"""``teacher`` that is cloned from many demonstrations, in place of a source of ``bench_data_study``."""

RETAINED_DATA = "{retained}"
"""In a run's settings: the recordings of the retained tasks, comma-separated."""


def run(overrides: list[str]) -> int:
    """Make what is missing and write the table after every run."""
    config = compose("bench_distillation", overrides)
    study = compose("bench_data_study", list(config.study))
    names = chosen("only", config.only, study.tasks)
    retained = chosen("retained", config.retained, study.tasks) if config.retained else []
    if both := set(names) & set(retained):
        raise UserError(
            f"retained={retained}: {', '.join(sorted(both))} in only as well; a task is either distilled or not"
        )
    algorithms = chosen("algorithms", config.algorithms, [CLONING, CLONING_REHEARSED, *config.runs])
    for name in algorithms:
        rehearses = any(RETAINED_DATA in setting for setting in config.runs.get(name, ()))
        if not retained and (rehearses or name == CLONING_REHEARSED):
            raise UserError(f"algorithms={name} rehearses what is retained: name tasks, retained=[...]")
    work = Path(config.work)
    recordings: dict[str, list[Path]] = {HUMAN: []}
    if {CLONING, CLONING_REHEARSED} & set(algorithms):
        recordings[config.teacher] = []
    scenes = []
    for name in [*names, *retained]:
        if config.scenes.episodes:
            scenes.append(_scenes(config, study, name))
        recordings[HUMAN].append(recorded(study, name, HUMAN))
    for name in names:
        _specialist(config, study, name)
        if config.teacher in recordings:
            recordings[config.teacher].append(recorded(study, name, config.teacher))
    env = environment(study, names, config.limit, config.num_workers)
    others = recordings[HUMAN][len(names) :]
    rehearsed = ",".join(map(str, others))
    elsewhere = environment(study, retained, config.limit, config.num_workers) if retained else None
    paths = ",".join(f"{study.tasks[name].id}:{expert_of(study, name, config.teacher)}" for name in names)
    specialists = "{" + paths + "}"
    policies = ["policy=specialists", f"policy.paths={specialists}"]
    counted(work / "specialists.json", env, policies, episodes=config.episodes)

    def keeps(name: str) -> None:
        if elsewhere is not None:
            policy = policy_of(config, work / name)
            counted(work / f"{RETAINED}{name}.json", elsewhere, policy, episodes=config.retained_episodes)

    def clone(name: str, data: list[Path], settings: list[str]) -> Path:
        out = work / name
        pretrained(out, data, settings, work / "log.txt")
        counted(work / f"{name}.json", env, policy_of(config, out), episodes=config.episodes)
        keeps(name)
        return out

    seen = [f"train.vision_datasets=[{','.join(map(str, scenes))}]"] if scenes else []
    student = clone("student", recordings[HUMAN], [*config.student, *seen])
    for seed in config.seeds:
        for algorithm in algorithms:
            if algorithm in (CLONING, CLONING_REHEARSED):
                settings = [f"train.type={student}", *config.cloning, f"train.seed={seed}"]
                data = recordings[config.teacher] + (others if algorithm == CLONING_REHEARSED else [])
                clone(f"{algorithm}-{seed}", data, settings)
            else:
                _train(config, env, specialists, rehearsed, algorithm, int(seed))
                keeps(f"{algorithm}-{seed}")
            write_table(config, names, study.cameras)
    write_table(config, names, study.cameras)
    return 0


def _specialist(config: Any, study: Any, name: str) -> None:
    """The teacher of one task, unless it is there already."""
    if config.teacher != CLONED:
        train_experts(study, name, [config.teacher])
        return
    asked, folder = config.cloned, Path(study.work) / name / "many"
    demonstrated(folder, environment_of(study, name), noise=asked.noise, episodes=asked.demos)
    settings = [ON_STATE, f"train.chunk_size={config.horizon}", *asked.settings]
    pretrained(
        expert_of(study, name, CLONED), [folder / "demonstrations"], settings, folder.parent / "log.txt"
    )


def _scenes(config: Any, study: Any, name: str) -> Path:
    """Pictures of many scenes of a task, for the vision tower's warm start."""
    out = Path(study.work) / "scenes" / name
    if not (out / "meta" / "info.json").is_file():
        asked = config.scenes
        env = [*environment_of(study, name), *pictures(study)]
        wanted = [f"episodes={asked.episodes}", f"stills={asked.stills}", f"stills_within={asked.within}"]
        policy = ["policy=expert", f"policy.noise={study.noise}"]
        call(["record", *env, *policy, *wanted, "seed=730000", f"out={out}"], Path(study.work) / "record.log")
    return out


def policy_of(config: Any, folder: Path) -> list[str]:
    """Overrides of a policy."""
    return ["policy=lerobot", f"policy.path={folder}", f"policy.horizon={config.horizon}"]


def _train(config: Any, env: list[str], specialists: str, rehearsed: str, algorithm: str, seed: int) -> None:
    work = Path(config.work)
    settings = [setting.replace(RETAINED_DATA, rehearsed) for setting in config.runs[algorithm]]
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
