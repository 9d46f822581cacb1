"""TorchRL's TD3Loss, its replay buffer and target update: gradient steps on noise, put together as its own TD3 example is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vla_rl.bench.peers.serve import serve


def make(settings: dict[str, Any]) -> Callable[[int], None]:
    """``settings``: state, actions, critics, hidden, batch_size, frames, actor_every."""
    import torch
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torch import nn
    from torchrl.data import Bounded, LazyTensorStorage, TensorDictReplayBuffer
    from torchrl.modules import MLP, TanhModule, ValueOperator
    from torchrl.objectives import SoftUpdate, TD3Loss

    state, actions, frames = (settings[key] for key in ("state", "actions", "frames"))
    spec = Bounded(-torch.ones(actions), torch.ones(actions))
    sizes: dict[str, Any] = {"num_cells": settings["hidden"], "activation_class": nn.ReLU}
    mean: Any = TensorDictModule(MLP(state, actions, **sizes), in_keys=["observation"], out_keys=["param"])
    squashed: Any = TanhModule(in_keys=["param"], out_keys=["action"], spec=spec)
    actor: Any = TensorDictSequential(mean, squashed)
    critic = ValueOperator(MLP(state + actions, 1, **sizes), in_keys=["action", "observation"])
    loss = TD3Loss(
        actor,
        critic,
        num_qvalue_nets=settings["critics"],
        action_spec=spec,
        delay_actor=True,
        delay_qvalue=True,
    )
    loss.make_value_estimator(gamma=0.97)
    targets = SoftUpdate(loss, eps=0.99)
    actor_optimizer = torch.optim.Adam(loss.actor_network_params.flatten_keys().values(), lr=3e-4)
    critic_optimizer = torch.optim.Adam(loss.qvalue_network_params.flatten_keys().values(), lr=5e-4)
    replay = TensorDictReplayBuffer(storage=LazyTensorStorage(frames), batch_size=settings["batch_size"])
    flag = torch.zeros(frames, 1, dtype=torch.bool)
    after = {
        "observation": torch.randn(frames, state),
        "reward": torch.zeros(frames, 1),
        "done": flag,
        "terminated": flag.clone(),
    }
    values = {
        "observation": torch.randn(frames, state),
        "action": torch.rand(frames, actions) * 2 - 1,
        "next": TensorDict(after, [frames]),
    }
    replay.extend(TensorDict(values, [frames]))

    def work(count: int) -> None:
        for number in range(count):
            batch = replay.sample()
            value, _ = loss.value_loss(batch)
            critic_optimizer.zero_grad()
            value.backward()
            critic_optimizer.step()
            if number % settings["actor_every"] == 0:
                improvement, _ = loss.actor_loss(batch)
                actor_optimizer.zero_grad()
                improvement.backward()
                actor_optimizer.step()
                targets.step()

    return work


if __name__ == "__main__":
    serve(make)
