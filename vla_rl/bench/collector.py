"""How fast experience is collected with a VLA in the loop, against rendering at stock quality on every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_rl.config import build, compose
from vla_rl.policies.load import load_base
from vla_rl.rollout.clock import time_collection
from vla_rl.runtime.metrics import write_json
from vla_rl.runtime.threads import set_threads


def run(overrides: list[str]) -> int:
    """Time both, one after the other, and print the ratio."""
    config = compose("bench_collector", overrides)
    set_threads(config.threads)
    result: dict[str, Any] = {}
    for name, node, steps in (
        ("vla_rl", config.env, config.steps),
        ("stock", config.stock, config.stock_steps),
    ):
        env = build(node)
        try:
            result[name] = time_collection(env, load_base(config.policy), int(steps), seed=int(config.seed))
        finally:
            env.close()
        print(_line(name, result[name]))
    result["ratio"] = result["vla_rl"]["steps_per_s"] / result["stock"]["steps_per_s"]
    print(f"{result['ratio']:.1f} times as fast; collector overhead {result['vla_rl']['overhead']:.1%}")
    if config.json:
        write_json(Path(config.json), result)
        print(f"wrote {config.json}")
    return 0


def _line(name: str, timing: dict[str, float]) -> str:
    parts = ", ".join(f"{part} {timing[part]:.1f} s" for part in ("simulator", "cameras", "policy"))
    return (
        f"{name:<8} {timing['steps_per_s']:.0f} steps/s ({timing['steps']} steps in {timing['seconds']:.1f} s: "
        f"{parts}; {timing['looks_per_step']:.2f} pictures per step)"
    )


