"""``vla-rl bench learner``: residual TD3's updates per second against other learners with the same critics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_rl.bench.sides import environment, keep, measured
from vla_rl.config import compose
from vla_rl.runtime.stages import chosen


def run(overrides: list[str]) -> int:
    """Every peer against each of our settings; writes the JSON."""
    config = compose("bench_learner", overrides)
    rows = []
    for name in chosen("only", config.only, config.peers):
        peer = config.peers[name]
        python = None
        if peer.requirements:
            python = environment(str(peer.module), peer.requirements, Path(config.work))
        for suffix, extra in config.ours.items():
            ours, theirs = sides(config, peer, extra)
            rows.append(
                measured(
                    config,
                    f"{name}{suffix}",
                    "updates/s",
                    ("vla_rl_td3", ours),
                    (str(peer.module), theirs),
                    int(config.updates),
                    python,
                )
            )
    keep(config, rows)
    return 0


def sides(config: Any, peer: Any, extra: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of our program and of the peer's: the same sizes, one-step returns, no demonstrations."""
    shared = {key: config[key] for key in ("state", "actions", "frames", "batch_size", "critics")}
    shared["hidden"] = list(config.hidden)
    ours: dict[str, Any] = {**peer.ours, **extra}
    ours |= {"critic_updates": 0, "demonstration_share": 0.0, "n_step": 1}
    return shared | ours, shared | {"subset": 2, "actor_every": 2}
