"""Our residual TD3: updates on a replay full of noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vla_rl.bench.peers.serve import serve


def make(settings: dict[str, Any]) -> Callable[[int], None]:
    """``settings``: state, actions, frames; the rest are the learner's own."""
    import torch
    from tensordict import TensorDict

    from vla_rl.algorithms.factory import residual_td3
    from vla_rl.algorithms.rlpd import Centre
    from vla_rl.environment import EnvSpec
    from vla_rl.keys import STATE
    from vla_rl.runtime.threads import set_threads

    set_threads(torch.get_num_threads())  # as every command of ours begins
    state, actions, frames = (settings.pop(key) for key in ("state", "actions", "frames"))
    spec = EnvSpec("bench", state, 0, (-1.0,) * actions, (1.0,) * actions, {}, ("bench",), 100, 10.0)
    learner = residual_td3(Centre(spec), spec, 1, observation_keys=[STATE], warmup_steps=0, **settings)
    no = torch.zeros(frames, dtype=torch.bool)
    values = {
        "observation": TensorDict({STATE: torch.randn(frames, state)}, [frames]),
        "base_action": torch.rand(frames, 1, actions) * 2 - 1,
        "action": torch.rand(frames, actions) * 2 - 1,
        "intervention": no,
        "reward": torch.zeros(frames),
        "terminated": no,
        "truncated": no,
        "final": no,
    }
    learner.observe(TensorDict(values, [frames]), torch.zeros(frames, dtype=torch.long))

    def work(count: int) -> None:
        for _ in range(count):
            learner.update()

    return work


if __name__ == "__main__":
    serve(make)
