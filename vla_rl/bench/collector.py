"""How fast experience is collected with a VLA in the loop, against rendering at stock quality on every step.

All are measured in turn, ``rounds`` times, in one process, so that a slow minute of the machine slows all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_rl.config import build, compose
from vla_rl.policies.load import load_base
from vla_rl.rollout.clock import time_collection
from vla_rl.runtime.metrics import write_json
from vla_rl.runtime.threads import set_cores, set_threads
from vla_rl.stats import ratio_row

STOCK = {
    "stock": "collection with the VLA in the loop against the stock camera at every step",
    "stock_resized": "the same with stock pictures as small as ours",
}


def run(overrides: list[str]) -> int:
    """Time all in turn; print the ratios and what the collector itself costs."""
    config = compose("bench_collector", overrides)
    set_threads(config.threads)
    set_cores(config.threads)  # the software renderer's threads too: it takes every core it can see
    resized = {**config.stock, "image_size": config.env.image_size}
    stock = {"stock": config.stock, "stock_resized": resized}
    sides = {"vla_rl": (config.env, config.steps)}
    sides |= {name: (node, config.stock_steps) for name, node in stock.items()}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    envs: dict[str, Any] = {}
    try:
        policy = load_base(config.policy)
        for name, (node, _) in sides.items():
            envs[name] = build(node)
        for number in range(int(config.rounds)):
            for name, (_, steps) in sides.items():
                seed = int(config.seed) + 10_000 * number
                timing = time_collection(envs[name], policy, int(steps), seed=seed)
                rounds[name].append(timing)
                print(_line(name, timing), flush=True)
    finally:
        for env in envs.values():
            env.close()
    rows = [_ratio(rounds, name, f"{what}, {stock[name]['image_size']} px") for name, what in STOCK.items()]
    for row in rows:
        print(
            f"{row['ratio']:.1f} times as fast (95 % {row['ratio95'][0]:.1f}-{row['ratio95'][1]:.1f}): {row['name']}"
        )
    rows.append(_overhead(rounds["vla_rl"]))
    print(f"collector overhead {rows[-1]['ours']:.1%}")
    if config.json:
        write_json(Path(config.json), {"rows": rows, "rounds": rounds})
        print(f"wrote {config.json}")
    return 0


def _ratio(rounds: dict[str, list[dict[str, float]]], stock: str, name: str) -> dict[str, Any]:
    ours, peer = ([r["steps_per_s"] for r in rounds[side]] for side in ("vla_rl", stock))
    return ratio_row(name, "environment steps/s", ours, peer)


def _overhead(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """What the collector adds to simulator, cameras and policy together; peer = 0, a loop that costs nothing."""
    seconds, inside = (sum(r[key] for r in rounds) for key in ("seconds", "inside"))
    return {
        "name": "collector overhead",
        "ours": (seconds - inside) / inside,
        "peer": 0.0,
        "unit": "fraction of simulator + policy time",
        "ratio": seconds / inside,
        "ratio95": [min(1 + r["overhead"] for r in rounds), max(1 + r["overhead"] for r in rounds)],
    }


def _line(name: str, timing: dict[str, float]) -> str:
    parts = ", ".join(f"{part} {timing[part]:.1f} s" for part in ("simulator", "cameras", "policy"))
    return (
        f"{name:<13} {timing['steps_per_s']:.0f} steps/s ({timing['steps']} steps in {timing['seconds']:.1f} s: "
        f"{parts}; {timing['looks_per_step']:.2f} pictures per step)"
    )
