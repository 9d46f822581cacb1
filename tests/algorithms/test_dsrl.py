"""Noise steering on the toy: it learns, leaves the base alone at magnitude 0, goes on bit for bit."""

import numpy as np
import pytest
import scipy.stats
import torch
from toy import SPEC, BiasedBase, Loop, PointMass, success_rate, train
from toy_diffusion import ToyDiffusion

from vla_rl.algorithms.factory import dsrl
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE
from vla_rl.nn.squashed import SquashedGaussian
from vla_rl.policies.open_loop import OpenLoop

SMALL = {
    "repeated": False,
    "warmup": 50,
    "first_updates": 10,
    "utd": 0.5,
    "batch_size": 32,
    "hidden": [32],
    "observation_keys": [STATE, ENV_STATE],
}


@pytest.fixture(scope="module")
def flow():
    return ToyDiffusion(flow=True, bias=0.06)


@pytest.mark.parametrize(
    ("variant", "steps", "settings"),
    [
        ("sac", 24_000, {"utd": 0.5, "actor_lr": 1e-3}),
        (
            "na",
            10_000,
            {"utd": 1.0, "actor_lr": 3e-4, "noise_updates": 2, "magnitude": 1.5, "target_entropy": 0.0},
        ),
    ],
)
@pytest.mark.learning
def test_learns(flow, variant, steps, settings):
    torch.manual_seed(0)
    algorithm = dsrl(
        OpenLoop(flow, 4),
        SPEC,
        16,
        variant=variant,
        warmup=400,
        first_updates=200,
        critic_lr=1e-3,
        tau=0.01,
        gamma=0.95,
        hidden=[64, 64],
        observation_keys=[STATE, ENV_STATE],
        **settings,
    )
    torch.manual_seed(1)
    before = success_rate(OpenLoop(flow_policy(flow), 4))
    loop, after = Loop(PointMass(16, 1), algorithm.policy, algorithm.observe), []
    for share in (0.85, 1.0):  # off-policy success goes up and down: either will do
        train(algorithm, int(share * steps), loop)
        torch.manual_seed(1)
        after.append(success_rate(algorithm.eval_policy))
    assert max(after) > before + 0.15, (before, after)


def flow_policy(flow):
    """The base as it is, from its own noise."""
    return dsrl(OpenLoop(flow, 4), SPEC, 1, **(SMALL | {"magnitude": 0.0})).chooser


def test_magnitude_0_is_the_base(flow):
    algorithm = dsrl(OpenLoop(flow, 4), SPEC, 16, **(SMALL | {"magnitude": 0.0}))
    seen, state = PointMass(4, 0).observe(), flow.initial_state(4)
    torch.manual_seed(3)
    noise = torch.randn(4, 8).view(4, 4, 2)
    wanted = flow.actions_of(algorithm.chooser.generate(flow.encode(seen, state)[0], noise))
    torch.manual_seed(3)
    output, _ = algorithm.chooser.act(seen, state, deterministic=True)
    assert torch.equal(output["action"], wanted)
    assert not train(algorithm, 1500)


@pytest.mark.parametrize("magnitude", [0.5, 2.5])
def test_magnitude_bounds_the_noise(flow, magnitude):
    torch.manual_seed(0)
    algorithm = dsrl(OpenLoop(flow, 4), SPEC, 16, **(SMALL | {"magnitude": magnitude, "actor_lr": 1e-1}))
    train(algorithm, 2000)
    seen = PointMass(200, 0).observe()
    noise = algorithm.chooser.spread(algorithm.chooser.choose(seen, 200, False))
    assert noise.abs().max() <= magnitude and noise.abs().max() > 0.7 * magnitude


@pytest.mark.parametrize(("penalty", "bound"), [(0.0, None), (100.0, 0.6)])
def test_the_penalty_keeps_the_noise_near_the_base_s_own(flow, penalty, bound):
    """GR-RL's noise predictor: a price instead of a box."""
    torch.manual_seed(0)
    settings = SMALL | {
        "variant": "na",
        "magnitude": 4.0,
        "penalty": penalty,
        "actor_lr": 1e-2,
        "temperature": 1e-6,
    }
    algorithm = dsrl(OpenLoop(flow, 4), SPEC, 16, **settings)
    train(algorithm, 2500)
    noise = algorithm.chooser.spread(algorithm.chooser.choose(PointMass(200, 0).observe(), 200, True))
    half = (noise.flatten(1).square().mean(1) / 2).mean()
    assert (half > 1.0) if bound is None else (half < bound), half


def test_the_warm_up_denoises_once(flow):
    """The reference feeds the warm-up's action to a wrapper that takes it for noise."""
    torch.manual_seed(0)
    algorithm = dsrl(OpenLoop(flow, 4), SPEC, 4, **SMALL)
    seen, state = PointMass(4, 0).observe(), flow.initial_state(4)
    output, _ = algorithm.chooser.act(seen, state)
    again = algorithm.chooser.generate(flow.encode(seen, state)[0], algorithm.chooser.spread(output["noise"]))
    assert torch.allclose(output["action"], again)
    drawn = torch.cat([algorithm.chooser.choose(seen, 4, False).flatten() for _ in range(100)])
    assert scipy.stats.kstest((drawn * algorithm.config.magnitude).numpy(), "norm").pvalue > 0.01


def test_repeated_noise(flow):
    algorithm = dsrl(OpenLoop(flow, 4), SPEC, 4, **(SMALL | {"repeated": True}))
    noise = algorithm.chooser.spread(algorithm.chooser.choose(PointMass(4, 0).observe(), 4, False))
    assert noise.shape == (4, 4, 2) and (noise == noise[:, :1]).all()


def test_a_time_limit_bootstraps_and_a_success_does_not(flow):
    torch.manual_seed(0)
    algorithm = dsrl(OpenLoop(flow, 4), SPEC, 16, **(SMALL | {"warmup": 10**6}))
    train(algorithm, 3000)
    batch = algorithm.ring.sample(400, torch.Generator().manual_seed(0))
    target = algorithm._target(batch)
    won, cut = batch["terminated"], batch["ended"] & ~batch["terminated"]
    assert won.any() and cut.any()
    assert torch.allclose(target[won], batch["reward"][won] - 1.0) and (target[won] == 0).all()
    assert ((target[cut] + 1.0).abs() > 1e-6).all()


@pytest.mark.parametrize("variant", ["sac", "na"])
def test_resume_is_bit_exact(flow, variant, tmp_path):
    def begin():
        torch.manual_seed(0)
        return dsrl(OpenLoop(flow, 4), SPEC, 16, **(SMALL | {"variant": variant}))

    first = begin()
    train(first, 1000)
    first.decisions._open.clear()  # the collector closes what is under way before a checkpoint
    first.save(tmp_path)
    second = begin()
    second.load(tmp_path)
    for algorithm in (first, second):
        train(algorithm, 2000, Loop(PointMass(16, 9), algorithm.policy, algorithm.observe))
    assert first.updates == second.updates > 50
    for a, b in zip(first.actor.parameters(), second.actor.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(first.log_temperature, second.log_temperature)


def updated(flow, **settings):
    """A learner after 1600 steps, and its metrics of every update."""
    torch.manual_seed(0)
    algorithm = dsrl(OpenLoop(flow, 4), SPEC, 16, **(SMALL | settings))
    return algorithm, train(algorithm, 1600)


def apart(first, second):
    """Largest difference of a critic's weights, relative to their size."""
    pairs = zip(first.critic.parameters(), second.critic.parameters(), strict=True)
    return max(float((a - b).norm() / a.norm().clamp(min=1)) for a, b in pairs)


@pytest.mark.parametrize("variant", ["sac", "na"])
def test_products_in_bfloat16_give_nearly_the_same_updates_and_float32_weights(flow, variant):
    exact, half = (updated(flow, variant=variant, precision=p)[0] for p in ("float32", "bfloat16"))
    assert exact.updates == half.updates > 50
    assert all(p.dtype == torch.float32 for p in half.critic.parameters())
    assert 0 < apart(exact, half) < 0.1


@pytest.mark.learning
def test_compiled_updates_are_the_same(flow):
    """``compile`` changes the speed of the updates, and sums in their last digits."""
    (plain, found), (compiled, same) = (updated(flow, compile=c) for c in (False, True))
    assert plain.updates == compiled.updates > 50
    for name in ("critic_loss", "actor_loss", "entropy"):
        ours, theirs = (torch.stack([m[name] for m in rows[:4]]) for rows in (found, same))
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_squashed_density_is_that_of_its_draws():
    torch.manual_seed(0)
    actor = SquashedGaussian(1, [8], 1)
    features = torch.zeros(200_000, 1)
    with torch.no_grad():
        drawn, density = actor(features, actor.noise(len(features)))
    counts, edges = np.histogram(drawn.numpy(), bins=40, range=(-0.95, 0.95))
    centres = (edges[1:] + edges[:-1]) / 2
    measured = counts / len(drawn) / (edges[1] - edges[0])
    order = drawn.flatten().argsort()
    said = np.interp(centres, drawn.flatten()[order].numpy(), density[order].exp().numpy())
    assert np.abs(measured - said).max() < 0.05 * said.max()


def test_refusals(flow):
    with pytest.raises(UserError, match="variant=nia: choose sac or na"):
        dsrl(OpenLoop(flow, 4), SPEC, 4, variant="nia")
    with pytest.raises(UserError, match="algorithm.precision=float16: did you mean"):
        dsrl(OpenLoop(flow, 4), SPEC, 4, precision="float16")
    with pytest.raises(UserError, match="gives no action chunks"):
        dsrl(BiasedBase(), SPEC, 4)
    with pytest.raises(UserError, match="demonstrations=none"):
        dsrl(OpenLoop(flow, 4), SPEC, 4).add_demonstrations(None)
