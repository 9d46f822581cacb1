"""Pairs judged per second: a trajectory in batches, each picture looked at once, against ``generate()`` pair by pair.

Both sides answer the same questions about the same pictures with the same weights, in turn, ``rounds`` times in one process.
``generate()`` may say answers only, and says one word; it looks at both pictures of every pair, as the reference code does.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from vla_rl.bench.decoding import PROMPT, WordsOnly, nano
from vla_rl.config import compose
from vla_rl.critic.model import PROGRESS, Critic
from vla_rl.runtime.metrics import write_json
from vla_rl.runtime.threads import set_threads
from vla_rl.stats import ratio_row


def run(overrides: list[str]) -> int:
    """Check that the answers are equal, time both sides in turn, print and write the ratio."""
    config = compose("bench_critic", overrides)
    set_threads(config.threads)
    torch.manual_seed(config.seed)
    with tempfile.TemporaryDirectory() as folder:
        critic = subject(config, Path(folder))
        size = int(config.image_size)
        pictures = torch.randint(0, 256, (config.pictures, 3, size, size), dtype=torch.uint8)
        same = float((batched(critic, pictures) == generated(critic, pictures)).float().mean())
        print(f"answers that are equal: {same:.2%} of {len(pictures) - 1}")
        sides: dict[str, list[float]] = {"ours": [], "generate": []}
        for _ in range(config.rounds):
            for name, call in (("ours", batched), ("generate", generated)):
                began = time.perf_counter()
                call(critic, pictures)
                sides[name].append(time.perf_counter() - began)
            print(f"ours {sides['ours'][-1]:.3f} s  generate {sides['generate'][-1]:.3f} s", flush=True)
    pairs = len(pictures) - 1
    ours, peer = ([pairs / seconds for seconds in sides[name]] for name in ("ours", "generate"))
    row = ratio_row("vs_generate", "pairs per second", ours, peer)
    low, high = row["ratio95"]
    print(f"{row['ratio']:.1f} times as fast (95 % {low:.1f}-{high:.1f})")
    if config.json:
        write_json(Path(config.json), {"rows": [row], "equal_answers": same, "seconds": sides})
        print(f"wrote {config.json}")
    return 0


def subject(config: Any, folder: Path) -> Critic:
    """A ``token_nano`` with random weights, as a critic."""
    policy = nano(config, folder)
    return Critic(
        policy, {"image": [config.image_size] * 2, "skip": 1, "references": 2, "differences": False}
    )


@torch.no_grad()
def batched(critic: Critic, pictures: Tensor) -> Tensor:
    """Likeliest answer [T - 1] to each pair of neighbours [T, 3, H, W], ours."""
    seen = critic.look(pictures)
    asked = critic.words(PROGRESS, [PROMPT] * (len(seen) - 1))
    return critic.answers(critic.compared(seen[:-1], seen[1:]), asked).argmax(-1)


@torch.no_grad()
def generated(critic: Critic, pictures: Tensor) -> Tensor:
    """The same by ``generate()``, pair by pair."""
    network = critic.network
    words = LogitsProcessorList([WordsOnly(network.first_word)])
    said = []
    for pair in zip(pictures[:-1], pictures[1:], strict=True):
        asked, there = critic.words(PROGRESS, [PROMPT])
        seen = network.look(torch.stack(pair)).flatten(0, 1)[None]
        embedded = torch.cat([seen, network.vlm.get_input_embeddings()(asked).to(seen)], 1)
        mask = torch.cat([there.new_ones(seen.shape[:2]), there], 1).long()
        ids = network.vlm.generate(
            inputs_embeds=embedded,
            attention_mask=mask,
            max_new_tokens=1,
            do_sample=False,
            logits_processor=words,
        )
        said.append(ids[0, -1] - network.first_word)
    return torch.stack(said)
