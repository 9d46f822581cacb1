"""How fast experience is collected with a VLA in the loop, against rendering at stock quality on every step.

All are measured in turn, ``rounds`` times, in one process, so that a slow minute of the machine slows all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vla_rl.bench.sides import keep, line
from vla_rl.config import build, compose
from vla_rl.policies.load import load_base
from vla_rl.rollout.clock import time_collection
from vla_rl.runtime.stages import call, chosen, pretrained
from vla_rl.runtime.threads import set_cores, set_threads
from vla_rl.stats import ratio_row


def run(overrides: list[str]) -> int:
    """Time every simulator's three sides in turn; print the ratios and what the collector itself costs."""
    config = compose("bench_collector", overrides)
    set_threads(config.threads)
    set_cores(config.threads)  # the software renderer's threads too: it takes every core it can see
    rows, rounds = [], {}
    for name in chosen("only", config.only, config.simulators):
        rounds[name] = measured(config, name)
        rows += [_ratio(rounds[name], "stock", f"collect_vs_stock_{name}")]
        rows += [_ratio(rounds[name], "stock_small", f"collect_vs_stock_{name}_small")]
        for row in rows[-2:]:
            print(line(row), flush=True)
        rows.append(_overhead(rounds[name]["vla_rl"], f"collector_overhead_{name}"))
        print(f"collector overhead {rows[-1]['ours']:.1%}", flush=True)
    keep(config, rows, rounds=rounds)
    return 0


def measured(config: Any, name: str) -> dict[str, list[dict[str, float]]]:
    """Timings of each side of a simulator, round by round."""
    asked = config.simulators[name]
    ours = compose("eval", [*asked.env, "env.num_workers=0"]).env
    stock = {
        "_target_": "sim.vector.make",
        "ids": ours.ids,
        "num_envs": ours.num_envs,
        "num_workers": 0,
        **asked.stock,
    }
    sides: dict[str, tuple[Any, int]] = {"vla_rl": (ours, int(config.steps))}
    for side, size in (("stock", config.stock_size), ("stock_small", ours.image_size)):
        sides[side] = OmegaConf.create({**stock, "image_size": size}), int(config.stock_steps)
    path = asked.policy or _hardly_trained(config, name)
    rounds: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    envs: dict[str, Any] = {}
    try:
        node = OmegaConf.create(
            {"path": str(path), "horizon": config.horizon, "flow_steps": None, "device": "cpu"}
        )
        policy = load_base(node)
        for side, (node, _) in sides.items():
            envs[side] = build(node)
        for number in range(int(config.rounds) + 1):
            for side, (_, steps) in sides.items():
                timing = time_collection(envs[side], policy, steps, seed=int(config.seed) + 10_000 * number)
                if number:  # the first round warms up
                    rounds[side].append(timing)
                print(_line(f"{name} {side}", timing), flush=True)
    finally:
        for env in envs.values():
            env.close()
    return rounds


def _hardly_trained(config: Any, name: str) -> Path:
    """A SmolVLA of the shipped one's size for a simulator's observations and actions: what it does is of no matter here."""
    folder = Path(config.work) / name
    data, log = folder / "demonstrations", folder / "log.txt"
    if not (data / "meta" / "info.json").is_file():
        one = [*config.simulators[name].env, "env.num_envs=1", "env.num_workers=0"]
        call(["record", *one, "policy=expert", "episodes=2", f"out={data}"], log)
    pretrained(folder / "base", [data], ["train.steps=2", "train.batch_size=4"], log)
    return folder / "base"


def _ratio(rounds: dict[str, list[dict[str, float]]], stock: str, name: str) -> dict[str, Any]:
    ours, peer = ([r["steps_per_s"] for r in rounds[side]] for side in ("vla_rl", stock))
    return ratio_row(name, "environment steps/s", ours, peer)


def _overhead(rounds: list[dict[str, float]], name: str) -> dict[str, Any]:
    """What the collector adds to simulator, cameras and policy together; peer = 0, a loop that costs nothing."""
    seconds, inside = (sum(r[key] for r in rounds) for key in ("seconds", "inside"))
    return {
        "name": name,
        "ours": (seconds - inside) / inside,
        "peer": 0.0,
        "unit": "fraction of simulator + policy time",
        "ratio": seconds / inside,
        "ratio95": [min(1 + r["overhead"] for r in rounds), max(1 + r["overhead"] for r in rounds)],
    }


def _line(name: str, timing: dict[str, float]) -> str:
    parts = ", ".join(f"{part} {timing[part]:.1f} s" for part in ("simulator", "cameras", "policy"))
    return (
        f"{name:<22} {timing['steps_per_s']:.0f} steps/s ({timing['steps']} steps in {timing['seconds']:.1f} s: "
        f"{parts}; {timing['looks_per_step']:.2f} pictures per step)"
    )
