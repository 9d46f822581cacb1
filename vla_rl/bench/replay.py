"""``vla-rl bench replay``: batches per second of two cameras, sampled and augmented, against other replay buffers."""

from __future__ import annotations

from pathlib import Path

from vla_rl.bench.sides import measured
from vla_rl.bench.steps import chosen
from vla_rl.config import compose
from vla_rl.runtime.metrics import write_json


def run(overrides: list[str]) -> int:
    """Every peer against ours; writes the JSON."""
    config = compose("bench_replay", overrides)
    ours = {key: int(config[key]) for key in ("frames", "episode", "cameras", "size", "batch_size")}
    rows = []
    for name in chosen("only", config.only, config.peers):
        peer = dict(config.peers[name])
        module = str(peer.pop("module"))
        rows.append(
            measured(
                name,
                "batches/s",
                ("vla_rl_replay", ours),
                (module, ours | peer),
                Path(config.work),
                threads=int(config.threads),
                count=int(config.batches),
                rounds=int(config.rounds),
            )
        )
    if config.json:
        write_json(Path(config.json), {"rows": rows})
        print(f"wrote {config.json}")
    return 0
