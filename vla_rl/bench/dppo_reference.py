"""``vla-rl bench dppo_reference``: our DPPO updates beside the authors' structure, on one network and one batch.

First the numbers: both losses of the first minibatch, and the weights after an epoch. Then the time of whole iterations
(what follows the roll-out: old log-probabilities where they are computed again, then all epochs), in turn.
With ``reference=FOLDER``, a checkout of irom-princeton/dppo, also beside the authors' own program on their network.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.algorithms.dppo import DPPO
from vla_rl.bench.dppo_authors import Authors
from vla_rl.bench.dppo_equations import Knobs, Reference
from vla_rl.config import compose, resolve_path
from vla_rl.keys import ACTION, STATE
from vla_rl.runtime.metrics import write_json
from vla_rl.runtime.threads import set_threads
from vla_rl.stats import ratio_row


def run(overrides: list[str]) -> int:
    """Compare, then time; writes the JSON. Exit code 1: the losses differ by more than 1e-5."""
    config = compose("bench_dppo_reference", overrides)
    set_threads(config.threads)
    peers = {}
    for name, compiled in {"dppo_vs_reference": True, "dppo_vs_reference_eager": False}.items():
        if compiled and not config.compile:
            continue
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = sides(config, Path(folder), compiled)
        iteration = partial(time_reference, ours, theirs, int(config.epochs))
        peers[name] = compare(ours, theirs), ours, iteration
    if config.reference:
        authors = Authors(resolve_path(config.reference), config.authors)
        peers["dppo_vs_authors_program"] = authors.compare(), authors.ours, authors.time_iteration
    rows, seconds = [], {}
    for name, (apart, learner, peer) in peers.items():
        print(
            f"{name}: losses apart by {apart['policy_loss']:.1e} (policy), {apart['value_loss']:.1e} (value)"
        )
        row, seconds[name] = _in_turn(name, learner, peer, int(config.rounds))
        rows.append(row)
    apart = {name: peer[0] for name, peer in peers.items()}
    if config.json:
        write_json(Path(config.json), {"rows": rows, "apart": apart, "seconds": seconds})
        print(f"wrote {config.json}")
    return int(max(value for each in apart.values() for value in each.values()) > 1e-5)


def _in_turn(
    name: str, ours: DPPO, peer: Callable[[], float], rounds: int
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Iterations of both sides by turns: the result's row, and the seconds of each."""
    assert ours.batch is not None
    seconds: dict[str, list[float]] = {"ours": [], "reference": []}
    if ours.config.compile:
        time_ours(ours)
    for _ in range(rounds):
        seconds["ours"].append(time_ours(ours))
        seconds["reference"].append(peer())
        print(f"ours {seconds['ours'][-1]:.2f} s  reference {seconds['reference'][-1]:.2f} s", flush=True)
    updates = ours._updates_for(len(ours.batch))
    rates = {side: [updates / taken for taken in values] for side, values in seconds.items()}
    row = ratio_row(name, "updates per second", rates["ours"], rates["reference"])
    low, high = row["ratio95"]
    print(f"{row['ratio']:.2f} times as fast (95 % {low:.2f}-{high:.2f})")
    return row, seconds


def sides(config: Any, folder: Path, compiled: bool = False) -> tuple[DPPO, Reference]:
    """Our learner with an iteration's batch in it, and the reference on copies of its networks."""
    from vla_rl.algorithms.factory import dppo
    from vla_rl.environment import EnvSpec
    from vla_rl.policies.lerobot import LeRobotPolicy
    from vla_rl.policies.open_loop import OpenLoop

    torch.manual_seed(config.seed)
    policy = LeRobotPolicy(_dit(config, folder / "policy"))
    box = (-1.0,) * config.actions, (1.0,) * config.actions
    spec = EnvSpec("bench", config.state, 0, *box, {}, (TASK,), 100, 10.0)
    ours = dppo(
        OpenLoop(policy, config.chunk),
        spec,
        1,
        denoising_steps=config.steps,
        decisions=config.decisions,
        epochs=config.epochs,
        batch_size=config.batch_size,
        critic_warmup=0,
        target_kl=1e9,
        compile=compiled,
        observation_keys=[STATE],
    )
    ours.batch = noise_batch(ours, config.decisions, config.state, TASK)
    knobs = Knobs(
        config.steps,
        ours.config.min_std,
        ours.config.denoising_gamma,
        ours.config.clip,
        ours.config.clip_first,
        ours.config.clip_rate,
        config.chunk,
        config.actions,
        ours.config.actor_lr,
        ours.config.critic_lr,
    )
    return ours, Reference(knobs, ours.actor.head, ours.actor.network, ours.critic)


TASK = "do the task"


def _dit(config: Any, folder: Path) -> Path:
    """A small MultiTaskDiT with random weights that hear their condition."""
    from vla_rl.policies.nano_dit import nano_dit

    features = vector_features(config.state, config.actions)
    shape = {
        "hidden_dim": config.width,
        "num_layers": config.layers,
        "num_heads": 2,
        "timestep_embed_dim": 32,
    }
    small = {"text_width": 32, "text_layers": 1, "vision_width": 32, "vision_layers": 1}
    model = nano_dit(folder, features=features, chunk_size=config.chunk, tasks=[TASK], **shape, **small)
    for block in model.noise_predictor.transformer_blocks:  # LeRobot starts them deaf
        torch.nn.init.normal_(block.adaLN_modulation[-1].weight, std=0.2)
    return save_unscaled(folder, model, features)


def vector_features(state: int, actions: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """LeRobot's input and output features of a policy that sees a state [``state``] and nothing else."""
    from lerobot.configs import FeatureType, PolicyFeature

    return (
        {STATE: PolicyFeature(FeatureType.STATE, (state,))},
        {ACTION: PolicyFeature(FeatureType.ACTION, (actions,))},
    )


def save_unscaled(folder: Path, model: Any, features: tuple[dict[str, Any], dict[str, Any]]) -> Path:
    """Save a policy of ``vector_features`` whose processors change no number; returns ``folder``."""
    from lerobot.policies.factory import make_pre_post_processors

    from vla_rl.policies.nano import save_policy

    one = {key: torch.ones(feature.shape) for part in features for key, feature in part.items()}
    stats = {k: {"min": -v, "max": v, "mean": 0 * v, "std": v} for k, v in one.items()}
    before, after = make_pre_post_processors(model.config, dataset_stats=stats)
    save_policy(folder, model, before, after)
    return folder


def noise_batch(ours: DPPO, count: int, state: int, task: str) -> TensorDict:
    """``count`` decisions in noise [count, ``state``]: chunks really sampled, with their probabilities; advantages and returns
    are drawn.
    """
    seen = {STATE: torch.randn(count, state).clamp(-1, 1)}
    policy = ours.actor.base
    condition, _ = policy.encode(seen | {"task": [task] * count}, policy.initial_state(count))  # type: ignore[attr-defined]
    with torch.no_grad():
        sampled = ours.actor.sample(
            condition, torch.randn(count, *ours.actor.head.shape), deterministic=False
        )
        # Some way off the policy that the chunks came from, as in the middle of an iteration.
        for weight in ours.actor.network.parameters():
            weight.add_(2e-3 * torch.randn_like(weight))
    ours.encoder.normalizer.freeze()
    value = ours._values(TensorDict(seen, batch_size=[count]))
    parts = {
        "observation": TensorDict(seen, batch_size=[count]),
        "chain": sampled["chain"],
        "log_prob": sampled["log_prob"],
        "condition": condition,
        "advantage": torch.randn(count),
        "return": value + torch.randn(count),
        "value": value,
        "own": torch.ones(count, dtype=torch.bool),
    }
    return TensorDict(parts, batch_size=[count])


def minibatch(ours: DPPO, old: Tensor, which: Tensor, step: Tensor) -> dict[str, Any]:
    """What the reference's loss reads, gathered pair by pair."""
    batch = ours.batch
    assert batch is not None
    return {
        "before": batch["chain"][which, step],
        "after": batch["chain"][which, step + 1],
        "index": step,
        "condition": batch["condition"][which],
        "old": old[which, step],
        "advantage": batch["advantage"][which],
        "return": batch["return"][which],
        "features": ours.encoder(batch["observation"][which]).detach(),
    }


def elementwise(ours: DPPO, theirs: Reference) -> Tensor:
    """The old policy's log-probabilities as the reference keeps them: those of the frozen base, which drew the chunks."""
    assert ours.batch is not None
    drew = copy.copy(theirs)
    drew.network = ours.actor.head.network
    return drew.recompute(ours.batch["chain"], ours.batch["condition"])


def compare(ours: DPPO, theirs: Reference) -> dict[str, float]:
    """How far both losses are apart on one minibatch of pairs."""
    assert ours.batch is not None
    pairs = torch.randperm(len(ours.batch) * theirs.knobs.steps)[: ours.config.batch_size]
    which, step = pairs // theirs.knobs.steps, pairs % theirs.knobs.steps
    policy, value = theirs.losses(minibatch(ours, elementwise(ours, theirs), which, step))
    mine, _ = ours.actor_loss_of(which, step)
    return {
        "policy_loss": float((policy - mine).abs().detach()),
        "value_loss": float((value - ours.critic_loss_of(which)).abs().detach()),
    }


def time_ours(ours: DPPO) -> float:
    """Seconds of one iteration's updates; the batch stays for the next."""
    batch = ours.batch
    assert batch is not None
    ours.left, ours.order = ours._updates_for(len(batch)), []
    began = time.perf_counter()
    while ours.left:
        ours.update()
    taken = time.perf_counter() - began
    ours.batch = batch
    return taken


def time_reference(ours: DPPO, theirs: Reference, epochs: int) -> float:
    """Seconds of the same in the authors' order of work."""
    batch, steps = ours.batch, theirs.knobs.steps
    assert batch is not None
    began = time.perf_counter()
    old = theirs.recompute(batch["chain"], batch["condition"])
    for _ in range(epochs):
        pairs = torch.randperm(len(batch) * steps)
        for picked in pairs.split(ours.config.batch_size):
            theirs.update(minibatch(ours, old, picked // steps, picked % steps))
    return time.perf_counter() - began
