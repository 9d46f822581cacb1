"""Denoising steps as Gaussians: the schedulers' own samples, closed forms, and marginals that do not depend on eta."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler

from vla_rl.errors import UserError
from vla_rl.policies.denoising import Chain, log_prob, of_flow, of_scheduler

COMMON = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "clip_sample_range": 1.0}


def rows(count, value):
    return torch.full((count,), value, dtype=torch.long)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [100, 20, 1])
def test_ddpm_steps_are_the_schedulers(prediction, clip, steps):
    scheduler = DDPMScheduler(**COMMON, prediction_type=prediction, clip_sample=clip)
    chain = of_scheduler(scheduler, steps)
    generator = torch.Generator().manual_seed(0)
    for i, time in enumerate(scheduler.timesteps):
        x, output = (torch.randn(3, 4, 2, generator=generator) for _ in range(2))
        mean, std = chain.gaussian(output, x, rows(3, i), 1.0)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(i))
        theirs = scheduler.step(output, time, x, generator=torch.Generator().manual_seed(i)).prev_sample
        assert torch.allclose(mean + std * noise, theirs, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clip", [True, False])
def test_ddim_steps_are_the_schedulers(eta, clip):
    scheduler = DDIMScheduler(**COMMON, prediction_type="epsilon", clip_sample=clip)
    chain = of_scheduler(scheduler, 10)
    for i, time in enumerate(scheduler.timesteps):
        x, output, noise = (torch.randn(3, 4, 2) for _ in range(3))
        mean, std = chain.gaussian(output, x, rows(3, i), eta)
        theirs = scheduler.step(output, time, x, eta=eta, variance_noise=noise if eta else None).prev_sample
        assert torch.allclose(mean + std * noise, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("towards", ["noise", "data"])
def test_a_flow_without_noise_takes_eulers_steps(towards):
    chain = of_flow(7, towards)
    x, velocity = torch.randn(3, 4, 2, dtype=torch.float64), torch.randn(3, 4, 2, dtype=torch.float64)
    for i in range(7):
        mean, std = chain.gaussian(velocity, x, rows(3, i), 0.0)
        step = -1 / 7 if towards == "noise" else 1 / 7
        assert torch.allclose(mean, x + step * velocity, atol=1e-5) and not std.any()
    assert chain.times[0] == (1.0 if towards == "noise" else 0.0)


def best_velocity(x, level, centre, spread):
    """Of a flow towards noise whose data is Gaussian: E[noise - data | x]."""
    variance = ((1 - level) * spread) ** 2 + level**2
    gap = (x - (1 - level) * centre) / variance
    return level * gap - (centre + (1 - level) * spread**2 * gap)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_marginals_of_the_flows_sde_are_the_odes(eta):
    chain, centre, spread = of_flow(200, "noise"), 0.7, 0.4
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20_000, 1, 1, generator=generator)
    for i in range(chain.steps):
        velocity = best_velocity(x, float(chain.sigma[i]), centre, spread)
        mean, std = chain.gaussian(velocity, x, rows(len(x), i), eta)
        x = mean + std * torch.randn(x.shape, generator=generator)
        if i in (100, 160, chain.steps - 1):
            level = float(chain.sigma[i + 1])
            wanted = scipy.stats.norm((1 - level) * centre, math.hypot((1 - level) * spread, level))
            assert scipy.stats.kstest(x.flatten().numpy(), wanted.cdf).statistic < 0.02


def test_log_probability_is_scipys():
    x, mean = np.random.default_rng(0).normal(size=(2, 5))
    ours = log_prob(torch.tensor(x), torch.tensor(mean), torch.tensor(0.3))
    assert np.allclose(ours, scipy.stats.norm(mean, 0.3).logpdf(x))


def test_rows_may_be_at_different_steps():
    chain = of_scheduler(DDPMScheduler(**COMMON), 20)
    x, output = torch.randn(5, 4, 2), torch.randn(5, 4, 2)
    step = torch.tensor([0, 3, 19, 7, 7])
    mean, std = chain.gaussian(output, x, step, 1.0)
    for k in range(5):
        one = chain.gaussian(output[k : k + 1], x[k : k + 1], step[k : k + 1], 1.0)
        assert torch.equal(mean[k], one[0][0]) and torch.equal(std[k], one[1][0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: of_scheduler(EulerDiscreteScheduler(), 10), "EulerDiscreteScheduler has no tractable"),
        (lambda: of_scheduler(DDPMScheduler(variance_type="learned"), 10), "variance_type=learned"),
        (lambda: of_scheduler(DDPMScheduler(thresholding=True), 10), "thresholding=True"),
        (lambda: of_scheduler(DDPMScheduler(**COMMON), 101), "1 to 100"),
        (lambda: of_flow(0, "noise"), "at least 1"),
        (lambda: of_flow(4, "data", 0.1), "sigma_min=0.1"),
        (lambda: Chain(torch.zeros(1), torch.ones(2), torch.ones(2), "score"), "prediction=score"),
    ],
)
def test_heads_without_such_steps_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()
