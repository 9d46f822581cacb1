"""Films of a square that moves to a cross, left or right as the sentence says: what a tiny critic learns in a minute."""

from pathlib import Path

import tiny
import torch
from torch import Tensor

from vla_rl.critic.pairs import PairConfig
from vla_rl.critic.train import CriticConfig, CriticTrainer
from vla_rl.critic.trajectories import Trajectory

TASKS = ("push the cube to the goal", "pull the cube back")
SIZE, WIDE = 64, 12


def picture(place: float, row: int, task: int) -> Tensor:
    """A red square at ``place`` (0 ... 1 of the way) in a row; the goal, green, is right for the first task and left for the other."""
    out = torch.full((3, SIZE, SIZE), 40, dtype=torch.uint8)
    goal = 50 if task == 0 else 2
    out[:, row : row + WIDE, goal : goal + WIDE] = torch.tensor([30, 220, 60], dtype=torch.uint8)[
        :, None, None
    ]
    x = round(26 + place * (goal - 26))
    out[:, row : row + WIDE, x : x + WIDE] = torch.tensor([230, 40, 30], dtype=torch.uint8)[:, None, None]
    return out


def film(seed: int, task: int = 0, length: int = 13, success: bool = True) -> Trajectory:
    """From the middle to the goal, or half of the way."""
    row = int(torch.randint(0, SIZE - WIDE, (), generator=torch.Generator().manual_seed(seed)))
    reach = 1.0 if success else 0.4
    pictures = torch.stack([picture(reach * i / (length - 1), row, task) for i in range(length)])
    succeeded = torch.zeros(length, dtype=torch.bool)
    succeeded[-1] = success
    return Trajectory(pictures, TASKS[task], succeeded, f"film {seed}", length - 1)


def films(count: int, first: int = 0) -> list[Trajectory]:
    """Of both tasks, every fourth a failure."""
    return [film(first + i, i % 2, success=i % 4 != 3) for i in range(count)]


def untrained(place: Path) -> Path:
    """Folder of a critic of films after one step: it answers, and knows nothing."""
    start, pairs = tiny.tiny_token(place / "start"), PairConfig(skip=2, references=3)
    config = CriticConfig(start=str(start), steps=1, batch_size=2, held_out=0.0, pairs=pairs)
    CriticTrainer(config, films(4), place / "critic").learn()
    return place / "critic"
