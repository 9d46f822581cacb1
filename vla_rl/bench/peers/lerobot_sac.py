"""LeRobot's SAC learner: updates on its own replay buffer full of noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vla_rl.bench.peers.serve import serve


def make(settings: dict[str, Any]) -> Callable[[int], None]:
    """``settings``: state, actions, critics, subset, hidden, batch_size, frames, actor_every."""
    import torch
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.gaussian_actor.configuration_gaussian_actor import (
        ActorNetworkConfig,
        CriticNetworkConfig,
        GaussianActorConfig,
    )
    from lerobot.policies.gaussian_actor.modeling_gaussian_actor import GaussianActorPolicy
    from lerobot.rl.algorithms.sac import SACAlgorithm, SACAlgorithmConfig
    from lerobot.rl.buffer import ReplayBuffer

    state, actions, key = settings["state"], settings["actions"], "observation.state"
    config = GaussianActorConfig(
        input_features={key: PolicyFeature(FeatureType.STATE, (state,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (actions,))},
        device="cpu",
        dataset_stats={
            key: {"min": [-1.0] * state, "max": [1.0] * state},
            "action": {"min": [-1.0] * actions, "max": [1.0] * actions},
        },
        actor_network_kwargs=ActorNetworkConfig(hidden_dims=settings["hidden"]),
        state_encoder_hidden_dim=settings["hidden"][0],
        latent_dim=settings["hidden"][0],
    )
    algorithm = SACAlgorithm(
        GaussianActorPolicy(config),
        SACAlgorithmConfig(
            policy_config=config,
            num_critics=settings["critics"],
            num_subsample_critics=settings["subset"],
            critic_network_kwargs=CriticNetworkConfig(hidden_dims=settings["hidden"]),
            utd_ratio=settings["actor_every"],  # the actor at the last of so many critic updates
        ),
    )
    algorithm.make_optimizers_and_scheduler()
    buffer = ReplayBuffer(settings["frames"], device="cpu", state_keys=[key], use_drq=False)
    for _ in range(settings["frames"]):
        action = torch.rand(1, actions) * 2 - 1
        buffer.add({key: torch.randn(1, state)}, action, 0.0, {key: torch.randn(1, state)}, False, False)
    batches = buffer.get_iterator(settings["batch_size"], async_prefetch=False)

    def work(count: int) -> None:
        for _ in range(count // settings["actor_every"]):
            algorithm.update(batches)

    return work


if __name__ == "__main__":
    serve(make)
