"""Our PPO on a Gaussian policy over single actions: updates of iterations full of noise."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vla_rl.bench.peers.serve import serve


def make(settings: dict[str, Any]) -> Callable[[int], None]:
    """``settings``: state, actions, hidden, decisions, epochs, batch_size; the rest are the learner's own."""
    import torch

    from vla_rl.algorithms.factory import dppo
    from vla_rl.bench.dppo_reference import noise_batch, time_ours
    from vla_rl.environment import EnvSpec
    from vla_rl.keys import STATE
    from vla_rl.policies.lerobot import LeRobotPolicy
    from vla_rl.policies.open_loop import OpenLoop
    from vla_rl.runtime.threads import set_threads

    set_threads(torch.get_num_threads())  # as every command of ours begins
    state, actions, hidden = (settings.pop(key) for key in ("state", "actions", "hidden"))
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        policy = LeRobotPolicy(_gaussian(Path(folder), state, actions, hidden))
    box = (-1.0,) * actions, (1.0,) * actions
    spec = EnvSpec("bench", state, 0, *box, {}, ("bench",), 100, 10.0)
    fixed = {"critic_warmup": 0, "target_kl": 1e9, "clip": 0.2, "observation_keys": [STATE]}
    fixed |= {"actor_lr": 1e-5, "critic_lr": 1e-5, "grad_clip": 1.0, "hidden": hidden}
    learner = dppo(OpenLoop(policy, 1), spec, 1, **fixed, **settings)
    learner.batch = noise_batch(learner, settings["decisions"], state, "bench")

    def work(count: int) -> None:
        for _ in range(count):
            time_ours(learner)

    return work


def _gaussian(folder: Path, state: int, actions: int, hidden: list[int]) -> Path:
    """A ``gaussian_nano`` with random weights."""
    from vla_rl.bench.dppo_reference import save_unscaled, vector_features
    from vla_rl.policies.gaussian_nano.configuration_gaussian_nano import GaussianNanoConfig
    from vla_rl.policies.gaussian_nano.modeling_gaussian_nano import GaussianNanoPolicy

    inputs, outputs = features = vector_features(state, actions)
    config = GaussianNanoConfig(
        input_features=inputs, output_features=outputs, chunk_size=1, n_action_steps=1, hidden=hidden
    )
    return save_unscaled(folder, GaussianNanoPolicy(config), features)


if __name__ == "__main__":
    serve(make)
