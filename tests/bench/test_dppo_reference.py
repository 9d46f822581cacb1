"""DPPO's update is the one of the published equations, written down a second time (``vla_rl/bench/dppo_equations.py``)."""

import pytest
import torch

from vla_rl.bench.dppo_reference import compare, elementwise, minibatch, sides
from vla_rl.config import compose

SMALL = [
    "decisions=40",
    "batch_size=60",
    "state=6",
    "actions=3",
    "chunk=4",
    "width=32",
    "layers=1",
    "steps=3",
]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return sides(compose("bench_dppo_reference", SMALL), tmp_path_factory.mktemp("reference"))


def test_losses_equal_those_of_the_equations(both):
    ours, theirs = both
    for _ in range(3):
        apart = compare(ours, theirs)
        assert max(apart.values()) < 1e-5, apart


def test_and_so_do_the_networks_after_an_update(both):
    ours, theirs = both
    old = elementwise(ours, theirs)
    pairs = torch.randperm(120)[:60]
    which, step = pairs // 3, pairs % 3
    before = [p.clone() for p in theirs.network.parameters()]
    policy, value = theirs.update(minibatch(ours, old, which, step))
    batch, ours.order, ours.left = ours.batch, [pairs], 2
    metrics = ours.update()
    ours.batch = batch
    assert metrics["actor_loss"].item() == pytest.approx(policy.item(), abs=1e-5)
    assert metrics["critic_loss"].item() == pytest.approx(value.item(), abs=1e-5)
    moved = 0.0
    for a, b, was in zip(ours.actor.network.parameters(), theirs.network.parameters(), before, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
        moved += float((b - was).abs().sum())
    assert moved > 0
    for a, b in zip(ours.critic.parameters(), theirs.critic.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
