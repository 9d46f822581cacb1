"""``vla-rl bench replay``: batches per second of two cameras, sampled and augmented, against other replay buffers."""

from __future__ import annotations

from vla_rl.bench.sides import keep, measured
from vla_rl.config import compose
from vla_rl.runtime.stages import chosen


def run(overrides: list[str]) -> int:
    """Every peer against ours; writes the JSON."""
    config = compose("bench_replay", overrides)
    ours = {key: int(config[key]) for key in ("frames", "episode", "cameras", "size", "batch_size")}
    rows = []
    for name in chosen("only", config.only, config.peers):
        peer = dict(config.peers[name])
        module = str(peer.pop("module"))
        both = ("vla_rl_replay", ours), (module, ours | peer)
        rows.append(measured(config, name, "batches/s", *both, int(config.batches)))
    keep(config, rows)
    return 0
