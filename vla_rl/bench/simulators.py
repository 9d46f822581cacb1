"""``vla-rl bench simulators``: control steps per second, ours against the simulators as they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vla_rl.bench.sides import measured
from vla_rl.bench.steps import chosen
from vla_rl.config import compose
from vla_rl.runtime.metrics import write_json


def run(overrides: list[str]) -> int:
    """Every row; writes the JSON."""
    config = compose("bench_simulators", overrides)
    rows = []
    for name in chosen("only", config.only, config.simulators):
        both: Any = OmegaConf.to_container(config.simulators[name])
        ours, peer = ((side.pop("module"), side) for side in (both["ours"], both["peer"]))
        rows.append(
            measured(
                name,
                "control steps/s",
                ours,
                peer,
                Path(config.work),
                threads=int(config.threads),
                count=int(config.steps),
                rounds=int(config.rounds),
            )
        )
    if config.json:
        write_json(Path(config.json), {"rows": rows})
        print(f"wrote {config.json}")
    return 0
