"""Our frame replay: samples with both cameras shifted at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vla_rl.bench.peers.serve import serve


def make(settings: dict[str, Any]) -> Callable[[int], None]:
    """``settings``: frames, batch_size, cameras, size, episode; ``folder`` keeps the frames in files there."""
    import torch
    from tensordict import TensorDict

    from vla_rl.data.replay import ReplayBuffer
    from vla_rl.nn.images import RandomShift
    from vla_rl.runtime.threads import set_threads

    set_threads(torch.get_num_threads())  # as every command of ours begins
    frames, size, batch = settings["frames"], settings["size"], settings["batch_size"]
    keys = [f"observation.images.{i}" for i in range(settings["cameras"])]
    buffer = ReplayBuffer(frames, rows=1)
    for start in range(0, frames, 100):
        count = min(100, frames - start)
        step = torch.arange(start, start + count) % settings["episode"]
        pictures = {k: torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8) for k in keys}
        no = torch.zeros(count, dtype=torch.bool)
        values = {
            "observation": TensorDict(pictures | {"observation.state": torch.randn(count, 9)}, [count]),
            "base_action": torch.rand(count, 1, 7),
            "action": torch.rand(count, 7),
            "intervention": no,
            "reward": torch.zeros(count),
            "terminated": step == settings["episode"] - 1,
            "truncated": no,
            "final": no,
        }
        buffer.append(TensorDict(values, [count]), torch.zeros(count, dtype=torch.long))
    shift, generator = RandomShift(4), torch.Generator().manual_seed(0)

    def work(count: int) -> None:
        for _ in range(count):
            sample = buffer.sample(batch, 1, 0.99, generator)
            for side in ("observation", "next_observation"):
                for key in keys:
                    shift(sample.get((side, key)), generator)

    return work


if __name__ == "__main__":
    serve(make)
