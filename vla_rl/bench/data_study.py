"""``vla-rl bench data_study``: does a VLA learn more from a learned expert's demonstrations than from a person's?

After "Beyond Human Demonstrations" (arXiv 2509.19752): per task an expert is trained from a few demonstrations and sparse
reward, by Gaussian PPO and by reinforcement learning of a diffusion policy; one VLA is cloned from each origin's successes,
as many episodes of each task, and from the noisy scripted expert's, which stands for people.

Every part is a ``vla-rl`` command of its own, kept once finished: stopped at any moment, the same command goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_rl.config import compose
from vla_rl.errors import UserError
from vla_rl.runtime.metrics import write_json, write_text
from vla_rl.runtime.stages import (
    call,
    chosen,
    cloned,
    counted,
    demonstrated,
    pretrained,
    trained,
    workers,
    written,
)

HUMAN = "noisy_expert"
QUALITY = ("length", "length_std", "jerk", "action_jerk", "path", "variance", "coverage")
KEPT = ("successes", "episodes", "rate", "wilson95")


def run(overrides: list[str]) -> int:
    """Train, record, clone and judge what is missing; writes the table."""
    config = compose("bench_data_study", overrides)
    names = chosen("only", config.only, config.tasks)
    sources = [HUMAN, *config.experts]
    left_out = {}
    for name in names:
        train_experts(config, name, list(config.experts))
        try:
            for source in sources:
                recorded(config, name, source)
        except UserError as error:  # an expert too poor to record enough: the other tasks are still worth it
            left_out[name] = str(error)
            print(f"without {name}: {error}", flush=True)
    names = [name for name in names if name not in left_out]
    if not names:
        raise UserError(f"no task is left to learn from: {next(iter(left_out.values()))}")
    for source in sources:
        _vla(config, names, source)
    _write(config, names, sources, left_out)
    return 0


def environment_of(config: Any, name: str) -> list[str]:
    """Overrides of one task's environment."""
    task = config.tasks[name]
    limit = f"env.max_episode_steps={task.limit}"
    return ["env=metaworld", f"env.ids=[{task.id}]", limit, "env.num_envs=8", workers(config.num_workers)]


def train_experts(config: Any, name: str, sources: Sequence[str]) -> None:
    """Demonstrations, bases, and one run of each of the learned ``sources``."""
    folder, env = Path(config.work) / name, environment_of(config, name)
    demonstrated(folder, env, noise=config.noise, episodes=config.demos)
    for source in sources:
        expert = config.experts[source]
        sizes = [f"train.steps={config.bc_steps}", f"train.chunk_size={config.horizon}"]
        cloned(folder, [*expert.base, *sizes], name=f"{source}-base")
        arguments = [
            "experiment=bench",
            *env,
            "env.cameras=[]",
            f"policy.path={folder}/{source}-base",
            f"policy.horizon={config.horizon}",
            *expert.policy,
            *expert.run,
            f"run.seed={config.seed}",
            f"run.steps={config.steps}",
            "run.final_episodes=50",
        ]
        trained(expert_of(config, name, source), arguments)


def expert_of(config: Any, name: str, source: str) -> Path:
    """Where a task's learned expert lies."""
    return Path(config.work) / name / f"{source}-{config.seed}"


def recorded(config: Any, name: str, source: str) -> Path:
    """The folder of ``episodes`` successes with pictures, on scenes that no evaluation plays."""
    out = Path(config.work) / "data" / source / name
    if (out / "meta" / "info.json").is_file():
        return out
    policy = ["policy=expert", f"policy.noise={config.noise}"]
    if source != HUMAN:
        policy = ["policy=lerobot", f"policy.path={expert_of(config, name, source)}", "deterministic=true"]
    most = f"attempts={100 * config.episodes}"  # of a poor expert too
    wanted = [f"episodes={config.episodes}", most, "seed=700000", f"out={out}"]
    call(
        ["record", *environment_of(config, name), *pictures(config), *policy, *wanted],
        Path(config.work) / "record.log",
    )
    return out


def environment(config: Any, names: Sequence[str], limit: int, num_workers: int | None) -> list[str]:
    """Overrides of an environment with pictures and one row per task."""
    ids = ",".join(config.tasks[name].id for name in names)
    return [
        "env=metaworld",
        f"env.ids=[{ids}]",
        f"env.num_envs={len(names)}",
        f"env.max_episode_steps={limit}",
        *pictures(config),
        workers(num_workers),
    ]


def pictures(config: Any) -> list[str]:
    """Overrides of the cameras."""
    return [f"env.cameras=[{','.join(config.cameras)}]", f"env.image_size={config.image_size}"]


def _vla(config: Any, names: list[str], source: str) -> None:
    """A VLA from one origin's demonstrations of all tasks, and its success on all."""
    work = Path(config.work)
    out = work / f"vla-{source}"
    datasets = [recorded(config, name, source) for name in names]
    pretrained(out, datasets, config.vla, work / f"vla-{source}.log")
    env = environment(config, names, limit=150, num_workers=config.num_workers)
    policy = [f"policy.path={out}", f"policy.horizon={config.vla_horizon}"]
    counted(work / f"vla-{source}.json", env, policy, episodes=config.eval_episodes)


def _quality(config: Any, names: list[str], sources: list[str]) -> dict[str, dict[str, float]]:
    """Mean over tasks of each source's quality, on scales common to a task's sources."""
    from vla_rl.data.quality import compare

    rows: dict[str, list[dict[str, Any]]] = {source: [] for source in sources}
    for name in names:
        folders = [Path(config.work) / "data" / source / name for source in sources]
        for source, quality in zip(sources, compare(folders), strict=True):
            rows[source].append(quality.as_dict())
    return {s: {k: sum(r[k] for r in rows[s]) / len(rows[s]) for k in QUALITY} for s in sources}


def _write(config: Any, names: list[str], sources: list[str], left_out: dict[str, str]) -> None:
    work, out = Path(config.work), Path(config.out)
    judged = {s: json.loads((work / f"vla-{s}.json").read_text()) for s in sources}
    experts = {
        s: {
            n: json.loads((work / n / f"{s}-{config.seed}" / "final.json").read_text())["rate"] for n in names
        }
        for s in config.experts
    }
    quality = _quality(config, names, sources)
    rows = [{"name": s, "ours": judged[s]["rate"], "unit": "success rate of the VLA"} for s in sources]
    tasks = {s: {t: p["rate"] for t, p in judged[s]["per_task"].items()} for s in sources}
    vlas = {s: {k: judged[s][k] for k in KEPT} for s in sources}
    write_json(
        out / "results.json",
        {
            "rows": rows,
            "vla": vlas,
            "per_task": tasks,
            "experts": experts,
            "quality": quality,
            "left_out": left_out,
        },
    )
    write_text(out / "README.md", page(config, names, vlas, experts, quality, tasks, left_out))
    print(f"wrote {out / 'README.md'}")


def page(
    config: Any,
    names: list[str],
    vlas: Any,
    experts: Any,
    quality: Any,
    tasks: dict[str, dict[str, float]],
    left_out: dict[str, str],
) -> str:
    """The tables."""
    lines = [
        "# Demonstrations of three origins",
        "",
        f"`vla-rl bench data_study`: one VLA (`{config.vla[0].partition('=')[2]}`) cloned from {config.episodes} successes of each of "
        f"{len(names)} Meta-World tasks, from the noisy scripted expert (noise {config.noise}) and from two learned "
        f"experts per task, each trained for {config.steps} environment steps from {config.demos} demonstrations. "
        f"Success over {config.eval_episodes} episodes, 95 % Wilson interval; one seed.",
        "",
        "| origin | success of the experts, mean | success of the VLA | " + " | ".join(QUALITY) + " |",
        "|---" * (3 + len(QUALITY)) + "|",
    ]
    for source, part in vlas.items():
        low, high = part["wilson95"]
        mean = f"{100 * sum(experts[source].values()) / len(names):.0f} %" if source in experts else "-"
        numbers = " | ".join(f"{quality[source][key]:.3g}" for key in QUALITY)
        lines.append(
            f"| {source} | {mean} | {100 * part['rate']:.1f} % ({100 * low:.0f}-{100 * high:.0f}) | {numbers} |"
        )
    lines += ["", "Success in percent, of the experts and of the VLAs:", ""]
    head = [*(f"expert {s}" for s in experts), *(f"VLA {s}" for s in vlas)]
    lines += ["| task | " + " | ".join(head) + " |", "|---" * (1 + len(head)) + "|"]
    for name in names:
        cells = [experts[s][name] for s in experts] + [tasks[s][config.tasks[name].id] for s in vlas]
        lines.append(f"| {name} | " + " | ".join(f"{100 * rate:.0f}" for rate in cells) + " |")
    if left_out:
        lines += ["", "Left out, an expert being too poor to record enough: " + ", ".join(left_out) + "."]
    return written(lines, Path(config.out))
