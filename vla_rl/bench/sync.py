"""What synchronising weights costs per update of reinforcement learning, in bytes, against sending all of them.

DPPO trains the flow head of the shipped SmolVLA; learners keep float32, whoever acts has bfloat16. After every update the
bfloat16 weights go to a follower as sparse changes, whose copy has to be bit-equal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from vla_rl.algorithms.factory import dppo
from vla_rl.config import build, compose
from vla_rl.errors import UserError
from vla_rl.policies.load import load_base
from vla_rl.rollout.collector import Collector
from vla_rl.runtime.distributed.history import Followed, Published
from vla_rl.runtime.distributed.sparse import Weights
from vla_rl.runtime.metrics import write_json
from vla_rl.runtime.seeding import seed_everything
from vla_rl.runtime.threads import set_threads
from vla_rl.stats import ratio_row


def run(overrides: list[str]) -> int:
    """Measure each step size; print and write bytes and ratios."""
    config = compose("bench_sync", overrides)
    set_threads(config.threads)
    env: Any = build(config.env)
    rows = []
    try:
        for step_size in config.step_sizes:
            row = measured(config, env, float(step_size))
            rows.append(row)
            print(
                f"{row['name']}: {row['peer']:.0f} bytes, sparse {row['ours']:.0f}: {row['ratio']:.1f} times fewer "
                f"(95 % {row['ratio95'][0]:.1f}-{row['ratio95'][1]:.1f}); {row['changed']:.1%} of what is trained changed",
                flush=True,
            )
    finally:
        env.close()
    if config.json:
        write_json(Path(config.json), {"rows": rows})
        print(f"wrote {config.json}")
    return 0


def measured(config: Any, env: Any, step_size: float) -> dict[str, Any]:
    """One row: ``ours`` and ``peer`` in bytes per update; ``ratio`` full / sparse.

    Raises:
        UserError: the follower's copy differs.
    """
    seed_everything(int(config.seed))
    base: Any = load_base(config.policy)
    settings: Any = OmegaConf.to_container(config.algorithm, resolve=True)
    algorithm = dppo(base, env.env_spec, env.num_envs, actor_lr=step_size, **settings)
    collector = Collector(env, algorithm.policy, lambda n, _: int(config.seed) + n, sink=algorithm.observe)
    collector.begin()
    full = sum(t.numel() * 2 for t in base.base.model.state_dict().values() if t.is_floating_point())
    published = Published()
    published.publish(_bfloat16(algorithm.actor.network))
    follower = Followed(_bfloat16(algorithm.actor.network), lambda v: [d.pack() for d in published.since(v)])
    follower.catch_up()
    sizes: list[float] = []
    changed: list[float] = []
    while len(sizes) < int(config.updates):
        while not algorithm.ready:
            collector.step()
        while algorithm.updates_due() and len(sizes) < int(config.updates):
            algorithm.update()
            before = published.weights
            published.publish(_bfloat16(algorithm.actor.network))
            sizes.append(len(published.changes[-1].pack()))
            changed.append(_moved(before, published.weights))
            follower.catch_up()
            if not _equal(follower.weights, published.weights):
                raise UserError("the follower's weights differ from the learner's")
    row = ratio_row(f"sync_bytes_{step_size:.0e}", "bytes per update", [full] * len(sizes), sizes)
    row |= {"ours": row["peer"], "peer": row["ours"], "changed": sum(changed) / len(changed)}
    return row


def _bfloat16(network: torch.nn.Module) -> Weights:
    return {name: tensor.detach().bfloat16() for name, tensor in network.state_dict().items()}


def _moved(before: Weights | None, after: Weights | None) -> float:
    assert before is not None and after is not None
    total = sum(t.numel() for t in after.values())
    return sum(int((before[n] != t).sum()) for n, t in after.items()) / total


def _equal(ours: Weights, theirs: Weights | None) -> bool:
    assert theirs is not None
    return all(torch.equal(ours[name].view(torch.int16), t.view(torch.int16)) for name, t in theirs.items())
