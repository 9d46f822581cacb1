"""Our vector environment under random actions, as ``configs/env`` describe it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vla_rl.bench.peers.serve import serve


def make(settings: dict[str, Any]) -> Callable[[int], None]:
    """``settings``: overrides of an environment's configuration. Counts control steps of all rows."""
    import torch

    from vla_rl.config import build, compose

    env = build(compose("eval", settings["env"]).env)
    low, high = torch.tensor(env.env_spec.action_low), torch.tensor(env.env_spec.action_high)
    generator = torch.Generator().manual_seed(0)
    env.reset(seed=0)

    def work(count: int) -> None:
        for _ in range(count // env.num_envs):
            action = low + (high - low) * torch.rand(env.num_envs, len(low), generator=generator)
            _, _, terminated, truncated, _ = env.step(action)
            over = terminated | truncated
            if over.any():
                env.reset(options={"reset_mask": over.numpy()})

    return work


if __name__ == "__main__":
    serve(make)
