"""``vla-rl bench ppo``: iterations of PPO's updates per second on a Gaussian policy, against rsl_rl's."""

from __future__ import annotations

from pathlib import Path

from vla_rl.bench.sides import environment, keep, measured
from vla_rl.config import compose


def run(overrides: list[str]) -> int:
    """The peer against each of our settings; writes the JSON."""
    config = compose("bench_ppo", overrides)
    sizes = {key: config[key] for key in ("state", "actions", "decisions", "epochs", "batch_size")}
    sizes["hidden"] = list(config.hidden)
    python = environment("rsl_rl_ppo", config.requirements, Path(config.work))
    rows = [
        measured(
            config,
            name,
            "iterations/s",
            ("vla_rl_ppo", sizes | dict(extra)),
            ("rsl_rl_ppo", sizes),
            int(config.iterations),
            python,
        )
        for name, extra in config.ours.items()
    ]
    keep(config, rows)
    return 0
