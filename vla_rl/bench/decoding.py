"""Action words per second: one cached batch with its prefix computed once, against transformers' ``generate()`` per sample.

Both sides say the same words of the same observations with the same weights, greedily, in turn, ``rounds`` times in one process.
``generate()`` is given the prefix's embeddings (it cannot take proprioception otherwise) and may say action words only.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from vla_rl.config import compose
from vla_rl.keys import ACTION, IMAGES, STATE
from vla_rl.policies.token_vla.network import TokenNetwork
from vla_rl.runtime.metrics import write_json
from vla_rl.runtime.threads import set_threads
from vla_rl.stats import ratio_row

PROMPT = "push the cube to the goal"


def run(overrides: list[str]) -> int:
    """Check that the words are equal, time both sides in turn, print and write the ratio."""
    config = compose("bench_decoding", overrides)
    set_threads(config.threads)
    torch.manual_seed(config.seed)
    with tempfile.TemporaryDirectory() as folder:
        network, condition, count = _subject(config, Path(folder))
        same = float(
            (decoded(network, condition, count) == generated(network, condition, count)).float().mean()
        )
        print(f"words that are equal: {same:.2%} of {len(condition) * count}")
        sides = in_turn(
            {
                "ours": lambda: decoded(network, condition, count),
                "generate": lambda: generated(network, condition, count),
            },
            config.rounds,
        )
    actions = int(config.batch_size) * int(config.chunk)
    ours, peer = ([actions / seconds for seconds in sides[name]] for name in ("ours", "generate"))
    row = ratio_row("vs_generate", "actions per second", ours, peer)
    low, high = row["ratio95"]
    print(f"{row['ratio']:.1f} times as fast (95 % {low:.1f}-{high:.1f})")
    if config.json:
        write_json(Path(config.json), {"rows": [row], "equal_words": same, "seconds": sides})
        print(f"wrote {config.json}")
    return 0


def in_turn(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each of ``calls``, made one after the other, ``rounds`` times."""
    sides: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            sides[name].append(time.perf_counter() - began)
        print("  ".join(f"{name} {seconds[-1]:.3f} s" for name, seconds in sides.items()), flush=True)
    return sides


def nano(config: Any, folder: Path) -> Any:
    """A ``token_nano`` policy with random weights whose words differ from one another."""
    from lerobot.configs import FeatureType, PolicyFeature

    from vla_rl.policies.nano_token import token_policy

    size = int(config.image_size)
    inputs = {
        STATE: PolicyFeature(FeatureType.STATE, (config.state,)),
        f"{IMAGES}base": PolicyFeature(FeatureType.VISUAL, (3, size, size)),
    }
    outputs = {ACTION: PolicyFeature(FeatureType.ACTION, (config.actions,))}
    policy = token_policy(
        folder, features=(inputs, outputs), chunk_size=config.chunk, tasks=[PROMPT], **(config.model or {})
    )
    torch.nn.init.normal_(policy.network.vlm.get_output_embeddings().weight, std=0.3)
    return policy.eval()


def _subject(config: Any, folder: Path) -> tuple[TokenNetwork, TensorDict, int]:
    """Its network, a batch of conditions, and the number of words of a chunk."""
    rows, size = int(config.batch_size), int(config.image_size)
    network = nano(config, folder).network
    condition = {
        "pictures": torch.randint(0, 256, (rows, 1, 3, size, size), dtype=torch.uint8),
        "words": torch.randint(6, network.first_word, (rows, config.prompt)),
        "mask": torch.ones(rows, config.prompt, dtype=torch.bool),
        "state": torch.randn(rows, config.state),
    }
    return network, TensorDict(condition, batch_size=[rows]), config.chunk * config.actions


def decoded(network: TokenNetwork, condition: TensorDict, count: int) -> Tensor:
    """Words [B, N], ours."""
    return network.sample(condition, count, 0.0)["tokens"]


@torch.no_grad()
def generated(network: TokenNetwork, condition: TensorDict, count: int) -> Tensor:
    """The same words [B, N] by ``generate()``, one sample after the other."""
    words = LogitsProcessorList([WordsOnly(network.first_word)])
    said = []
    for row in range(len(condition)):
        embedded, there = network.prefix(condition[row : row + 1])  # type: ignore[arg-type]
        ids = network.vlm.generate(
            inputs_embeds=embedded,
            attention_mask=there.long(),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            logits_processor=words,
        )
        said.append(ids[0, -count:] - network.first_word)
    return torch.stack(said)


class WordsOnly(LogitsProcessor):
    """Nothing but action words may be said."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores with everything else made impossible."""
        scores[:, : self.first] = -torch.inf
        return scores
