"""rsl_rl's PPO: updates of iterations full of noise, with its own storage and settings but for a fixed step size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vla_rl.bench.peers.serve import serve


def make(settings: dict[str, Any]) -> Callable[[int], None]:
    """``settings``: state, actions, hidden, decisions, epochs, batch_size."""
    import torch
    from rsl_rl.algorithms import PPO  # pyright: ignore[reportMissingImports]
    from rsl_rl.models import MLPModel  # pyright: ignore[reportMissingImports]
    from rsl_rl.storage import RolloutStorage  # pyright: ignore[reportMissingImports]
    from tensordict import TensorDict

    steps = 24
    rows, hidden, actions = settings["decisions"] // steps, settings["hidden"], settings["actions"]

    def seen() -> TensorDict:
        return TensorDict({"policy": torch.randn(rows, settings["state"])}, [rows])

    gaussian = {"class_name": "GaussianDistribution", "init_std": 0.2, "std_type": "log"}
    groups = {"actor": ["policy"], "critic": ["policy"]}
    actor = MLPModel(seen(), groups, "actor", actions, hidden, distribution_cfg=gaussian)
    critic = MLPModel(seen(), groups, "critic", 1, hidden)
    learner = PPO(
        actor,
        critic,
        RolloutStorage("rl", rows, steps, seen(), [actions]),
        num_learning_epochs=settings["epochs"],
        num_mini_batches=settings["decisions"] // settings["batch_size"],
        learning_rate=1e-5,
        schedule="fixed",
    )
    for _ in range(steps):
        observation = seen()
        learner.act(observation)
        learner.process_env_step(observation, torch.randn(rows), torch.zeros(rows, dtype=torch.bool), {})
    learner.compute_returns(seen())

    def work(count: int) -> None:
        for _ in range(count):
            learner.update()

    return work


if __name__ == "__main__":
    serve(make)
