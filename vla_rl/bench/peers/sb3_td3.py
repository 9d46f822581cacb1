"""Stable-Baselines3's TD3: gradient steps on a replay buffer full of noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vla_rl.bench.peers.serve import serve


def make(settings: dict[str, Any]) -> Callable[[int], None]:
    """``settings``: state, actions, critics, hidden, batch_size, frames."""
    import gymnasium
    import numpy as np
    from stable_baselines3 import TD3  # pyright: ignore[reportMissingImports]

    class Room(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (settings["state"],), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (settings["actions"],), np.float32)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            return self.observation_space.sample(), {}

    network = {"net_arch": settings["hidden"], "n_critics": settings["critics"]}
    model = TD3("MlpPolicy", Room(), policy_kwargs=network, buffer_size=settings["frames"], device="cpu")
    model._setup_learn(1)
    for _ in range(settings["frames"]):
        state = model.observation_space.sample()[None]
        model.replay_buffer.add(
            state, state, model.action_space.sample()[None], np.zeros(1), np.zeros(1), [{}]
        )

    return lambda count: model.train(gradient_steps=count, batch_size=settings["batch_size"])


if __name__ == "__main__":
    serve(make)
