"""Where things are, read off pictures of unseen scenes by each image encoder that the algorithms and ``gaussian_nano`` have.

Encoder and a linear layer regress numbers that the simulator knows, from the same pictures in the same order. What reinforcement
learning from pictures needs first is that this generalises to new scenes; what it costs is seconds here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_rl.config import compose
from vla_rl.keys import image_key
from vla_rl.nn.images import ImageEncoder
from vla_rl.pretrain_data import Samples
from vla_rl.pretrain_vision import named_numbers, regress
from vla_rl.runtime.metrics import write_json
from vla_rl.runtime.stages import call, written
from vla_rl.runtime.threads import set_threads

LEARN_SEED, JUDGE_SEED = 730_000, 740_000
"""Of the scenes."""


def run(overrides: list[str]) -> int:
    """Record the scenes, train every encoder with every seed, write ``results.json`` and the page."""
    config = compose("bench_encoders", overrides)
    set_threads(config.threads)
    work = Path(config.work)
    learn = _scenes(config, work / "learn", config.scenes, LEARN_SEED)
    judge = _scenes(config, work / "judge", config.held_out, JUDGE_SEED)
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in config.seeds:
        for kind in config.kinds:
            rows.setdefault(kind, []).append(row := trained(config, kind, seed, learn, judge))
            print(f"{kind}, seed {seed}: " + ", ".join(f"{name} {value:.4g}" for name, value in row.items()))
    out = Path(config.out)
    write_json(out / "results.json", {"pictures": len(learn[0]), "encoders": rows})
    (out / "README.md").write_text(written(page(config, rows, len(learn[0])), out))
    print(f"wrote {out}")
    return 0


def _scenes(config: Any, folder: Path, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures uint8 [n, 3, H, W] of ``count`` scenes and the numbers [n, D] to read off them."""
    if not folder.exists():
        how = [f"stills={config.stills}", f"stills_within={config.within}", f"episodes={count}"]
        who = ["env.num_envs=8", "env.num_workers=0", "policy=expert", f"policy.noise={config.noise}"]
        call(
            ["record", *config.env, *who, *how, f"seed={seed}", f"out={folder}"], folder.parent / "record.log"
        )
    image = image_key(config.camera)
    samples = Samples.read([folder], [image], list(config.numbers))
    return samples.arrays[image], named_numbers(samples, config.numbers)


def trained(
    config: Any, kind: str, seed: int, learn: tuple[Tensor, Tensor], judge: tuple[Tensor, Tensor]
) -> dict[str, float]:
    """Errors of one encoder in the numbers' own units: root mean square and median, on what it learned from and on held-out scenes."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    pictures, numbers = learn
    middle, spread = numbers.mean(0), numbers.std(0)
    size = (int(pictures.shape[-2]), int(pictures.shape[-1]))
    encoder = ImageEncoder({"camera": size}, config.image_features, kind)
    network = nn.ModuleList([encoder, nn.Linear(config.image_features, numbers.shape[1])])

    def read(some: Tensor) -> Tensor:
        return network[1](encoder({"camera": some}))

    began = time.perf_counter()
    regress(
        [*network.parameters()],
        lambda pick: read(pictures[pick]),
        (numbers - middle) / spread,
        steps=config.steps,
        batch_size=config.batch_size,
        lr=config.lr,
        generator=generator,
    )
    seconds = time.perf_counter() - began
    row = {}
    for name, (shown, truth) in {"learned": learn, "held_out": judge}.items():
        with torch.no_grad():
            found = torch.cat([read(part) for part in shown.split(config.batch_size)]) * spread + middle
        error = (found - truth).norm(dim=1)
        row |= {f"{name}_rms": float(error.square().mean().sqrt()), f"{name}_median": float(error.median())}
    size_of = sum(parameter.numel() for parameter in encoder.parameters())
    return row | {"seconds": seconds, "parameters": float(size_of)}


def page(config: Any, rows: dict[str, list[dict[str, float]]], pictures: int) -> Sequence[str]:
    """The table."""
    numbers = ", ".join(f"{key} {list(which)}" for key, which in config.numbers.items())
    lines = [
        "# Image encoders: where things are",
        "",
        f"`vla-rl bench encoders`: {numbers} read off {pictures} pictures of {config.scenes} scenes ({', '.join(config.env)}) for {config.steps} "
        f"steps of {config.batch_size}, judged on {config.held_out} other scenes; seeds {', '.join(map(str, config.seeds))}, one by one. "
        "Errors in the numbers' own units (metres).",
        "",
        "| `algorithm.encoder` | held out: root mean square | held out: median | learned from: root mean square | seconds | parameters |",
        "|---|---|---|---|---|---|",
    ]
    for kind, each in rows.items():
        columns = [
            ", ".join(f"{row[name]:.4f}" for row in each)
            for name in ("held_out_rms", "held_out_median", "learned_rms")
        ]
        seconds = ", ".join(f"{row['seconds']:.0f}" for row in each)
        lines.append(f"| {kind} | {' | '.join(columns)} | {seconds} | {each[0]['parameters']:.0f} |")
    return lines
