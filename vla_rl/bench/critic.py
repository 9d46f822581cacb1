"""Pairs judged per second: a trajectory in batches, each picture looked at once, against ``generate()`` pair by pair.

Both sides answer the same questions about the same pictures with the same weights, in turn, ``rounds`` times in one process.
``generate()`` may say answers only, and says one word; it looks at all pictures of every pair, the reference's too, as the reference code
does.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from vla_rl.bench.decoding import PROMPT, WordsOnly, in_turn, nano
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
        shown = pictures[: config.references]
        found = {
            "vs_generate": _compared(critic, pictures, shown, config.rounds),
            "vs_generate_no_reference": _compared(critic, pictures, None, config.rounds),
        }
    rows = []
    for name, (same, sides) in found.items():
        ours, peer = (
            [(len(pictures) - 1) / seconds for seconds in sides[side]] for side in ("ours", "generate")
        )
        rows.append(ratio_row(name, "pairs per second", ours, peer))
        low, high = rows[-1]["ratio95"]
        print(
            f"{name}: {rows[-1]['ratio']:.1f} times as fast (95 % {low:.1f}-{high:.1f}), {same:.2%} equal answers"
        )
    if config.json:
        equal = {name: same for name, (same, _) in found.items()}
        write_json(Path(config.json), {"rows": rows, "equal_answers": equal})
        print(f"wrote {config.json}")
    return 0


def _compared(
    critic: Critic, pictures: Tensor, shown: Tensor | None, rounds: int
) -> tuple[float, dict[str, list[float]]]:
    """Share of equal answers, and the seconds of each side's rounds."""
    same = float((batched(critic, pictures, shown) == generated(critic, pictures, shown)).float().mean())
    calls = {
        "ours": lambda: batched(critic, pictures, shown),
        "generate": lambda: generated(critic, pictures, shown),
    }
    return same, in_turn(calls, rounds)


def subject(config: Any, folder: Path) -> Critic:
    """A ``token_nano`` with random weights, as a critic."""
    policy = nano(config, folder)
    return Critic(
        policy, {"image": [config.image_size] * 2, "skip": 1, "references": 2, "differences": False}
    )


@torch.no_grad()
def batched(critic: Critic, pictures: Tensor, shown: Tensor | None = None) -> Tensor:
    """Likeliest answer [T - 1] to each pair of neighbours [T, 3, H, W] after a reference ``shown`` [R, 3, H, W], ours."""
    seen = critic.look(pictures)
    asked = critic.words(PROGRESS, [PROMPT] * (len(seen) - 1))
    before = None if shown is None else critic.network.remember(critic.look(shown).flatten(0, 1))
    return critic.answers(critic.compared(seen[:-1], seen[1:]), asked, before).argmax(-1)


@torch.no_grad()
def generated(critic: Critic, pictures: Tensor, shown: Tensor | None = None) -> Tensor:
    """The same by ``generate()``, pair by pair."""
    network = critic.network
    words = LogitsProcessorList([WordsOnly(network.first_word)])
    said = []
    for first, second in zip(pictures[:-1], pictures[1:], strict=True):
        asked, there = critic.words(PROGRESS, [PROMPT])
        every = torch.stack([*([] if shown is None else shown), first, second])
        seen = network.look(every).flatten(0, 1)[None]
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
