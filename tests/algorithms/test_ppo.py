"""The pieces of PPO over denoising steps, against tables and formulas."""

import math

import numpy as np
import pytest
import torch

from vla_rl.algorithms.ppo import RewardScale, clip_schedule, clipped_loss, denoising_discount


def test_clip_schedule_by_hand():
    got = clip_schedule(5, 0.001, 0.01, 3.0).tolist()
    grown = [(math.exp(3 * t) - 1) / (math.exp(3) - 1) for t in (0, 0.25, 0.5, 0.75, 1)]
    assert got == pytest.approx([0.001 + 0.009 * g for g in grown])
    assert clip_schedule(3, 0.1, 0.3, 0.0).tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_one_trained_step_has_a_clip_range():
    assert clip_schedule(1, 0.001, 0.01).tolist() == pytest.approx([0.01])  # NaN in the reference


def test_noisier_steps_count_less():
    assert denoising_discount(4, 0.9).tolist() == pytest.approx([0.729, 0.81, 0.9, 1.0])


def test_clipped_loss_by_hand():
    old = torch.zeros(4)
    new = torch.tensor([0.5, 0.5, -0.5, -0.5])
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss, metrics = clipped_loss(new, old, advantage, torch.full((4,), 0.1))
    terms = [1.1, -math.exp(0.5), math.exp(-0.5), -0.9]
    assert loss.item() == pytest.approx(-sum(terms) / 4)
    assert metrics["clipped"] == 1
    kl = np.mean([math.exp(d) - 1 - d for d in (0.5, 0.5, -0.5, -0.5)])
    assert metrics["approx_kl"].item() == pytest.approx(kl, rel=1e-5)


def test_outside_the_trust_region_nothing_pulls_further():
    new = torch.tensor([0.3, -0.3], requires_grad=True)
    clipped_loss(new, torch.zeros(2), torch.tensor([1.0, -1.0]), torch.full((2,), 0.1))[0].backward()
    assert not new.grad.any()


def test_reward_scale_is_the_deviation_of_discounted_sums():
    scale = RewardScale(2, gamma=0.5)
    assert scale.scale == 1.0
    scale.update([[(1.0, False), (0.0, True), (2.0, True)], [(0.0, False)]])
    sums = [1.0, 0.5, 2.0, 0.0]
    assert scale.scale == pytest.approx(1 / np.std(sums))
    again = RewardScale(2, gamma=0.5)
    again.restore(scale.state())
    for part in (scale, again):
        part.update([[(1.0, False)], [(1.0, False)]])
    assert again.scale == scale.scale
