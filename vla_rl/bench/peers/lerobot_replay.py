"""LeRobot's replay buffer of its RL learner, with the augmentation that it compiles itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vla_rl.bench.peers.serve import serve


def make(settings: dict[str, Any]) -> Callable[[int], None]:
    """``settings``: frames, batch_size, cameras, size, episode."""
    import torch
    from lerobot.rl.buffer import ReplayBuffer

    keys = [f"observation.images.{i}" for i in range(settings["cameras"])]
    every = [*keys, "observation.state"]
    # optimize_memory: as LeRobot's learner has it, the next picture is the one behind
    buffer = ReplayBuffer(settings["frames"], device="cpu", state_keys=every, optimize_memory=True)

    def look() -> dict[str, Any]:
        shape = (1, 3, settings["size"], settings["size"])
        return {k: torch.rand(shape) for k in keys} | {"observation.state": torch.randn(1, 9)}

    now = look()
    for step in range(settings["frames"]):
        following = look()
        ended = (step + 1) % settings["episode"] == 0
        buffer.add(now, torch.rand(1, 7), 0.0, following, ended, False)
        now = following

    def work(count: int) -> None:
        for _ in range(count):
            buffer.sample(settings["batch_size"])

    return work


if __name__ == "__main__":
    serve(make)
