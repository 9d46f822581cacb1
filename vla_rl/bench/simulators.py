"""``vla-rl bench simulators``: control steps per second, ours against the simulators as they come."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from vla_rl.bench.sides import keep, measured
from vla_rl.config import compose
from vla_rl.runtime.stages import chosen


def run(overrides: list[str]) -> int:
    """Every row; writes the JSON."""
    config = compose("bench_simulators", overrides)
    rows = []
    for name in chosen("only", config.only, config.simulators):
        both: Any = OmegaConf.to_container(config.simulators[name])
        ours, peer = ((side.pop("module"), side) for side in (both["ours"], both["peer"]))
        rows.append(measured(config, name, "control steps/s", ours, peer, int(config.steps)))
    keep(config, rows)
    return 0
