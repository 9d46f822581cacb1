"""TorchRL's replay buffer. It has no random shift of its own: DrQ's, as LeRobot has it, comes after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vla_rl.bench.peers.serve import serve


def make(settings: dict[str, Any]) -> Callable[[int], None]:
    """``settings``: frames, batch_size, cameras, size; ``storage``: default, or tensor (``LazyTensorStorage``)."""
    import torch
    from lerobot.rl.buffer import random_shift
    from tensordict import TensorDict
    from torchrl.data import LazyTensorStorage, ListStorage, TensorDictReplayBuffer

    frames, size, batch = settings["frames"], settings["size"], settings["batch_size"]
    keys = [f"observation.images.{i}" for i in range(settings["cameras"])]
    # ListStorage is what a buffer has when none is named, though of 1000 items only
    storage = {"default": ListStorage, "tensor": LazyTensorStorage}[settings["storage"]](frames)
    buffer = TensorDictReplayBuffer(storage=storage, batch_size=batch)

    def look(count: int) -> dict[str, Any]:
        pictures = {k: torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8) for k in keys}
        return pictures | {"observation.state": torch.randn(count, 9)}

    for start in range(0, frames, 100):
        count = min(100, frames - start)
        no = torch.zeros(count, 1, dtype=torch.bool)
        ended = {"reward": torch.zeros(count, 1), "done": no, "terminated": no}
        following = TensorDict(look(count) | ended, [count])  # as its collectors store it
        buffer.extend(TensorDict(look(count) | {"action": torch.rand(count, 7), "next": following}, [count]))

    def work(count: int) -> None:
        for _ in range(count):
            sample = buffer.sample()
            for key in keys:
                random_shift(sample.get(key))
                random_shift(sample.get(("next", key)))

    return work


if __name__ == "__main__":
    serve(make)
