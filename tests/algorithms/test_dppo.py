"""DPPO on the toy: it learns, goes on bit for bit, and refuses what cannot work."""

import pytest
import torch
from scipy.stats import multivariate_normal
from toy import SPEC, Loop, PointMass, success_rate, train
from toy_diffusion import CHUNK, ToyDiffusion

from vla_rl.algorithms.factory import dppo
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE
from vla_rl.policies.denoised import Denoised
from vla_rl.policies.open_loop import OpenLoop

SMALL = {
    "decisions": 100,
    "epochs": 2,
    "batch_size": 200,
    "critic_warmup": 1,
    "hidden": [32],
    "observation_keys": [STATE, ENV_STATE],
}


@pytest.fixture(scope="module")
def diffusion():
    return ToyDiffusion(bias=0.075)


@pytest.fixture(scope="module")
def flow():
    return ToyDiffusion(flow=True, bias=0.06)


@pytest.mark.parametrize(("kind", "lr"), [("diffusion", 1e-3), ("flow", 3e-3)])
def test_learns(kind, lr, request):
    torch.manual_seed(0)
    algorithm = dppo(
        OpenLoop(request.getfixturevalue(kind), 4),
        SPEC,
        64,
        trained_steps=2,
        decisions=1600,
        epochs=8,
        gamma=0.97,
        actor_lr=lr,
        critic_lr=3e-3,
        critic_warmup=1,
        min_std=0.08,
        clip=0.1,
        clip_first=0.05,
        hidden=[64, 64],
        observation_keys=[STATE, ENV_STATE],
    )
    torch.manual_seed(1)
    before = success_rate(algorithm.eval_policy)
    train(algorithm, 45_000, envs=64)
    torch.manual_seed(1)
    after = success_rate(algorithm.eval_policy)
    assert after > before + 0.15, (before, after)


@pytest.mark.parametrize("trained", [1, 3, None])
def test_any_number_of_trained_steps(diffusion, trained):
    torch.manual_seed(0)
    algorithm = dppo(OpenLoop(diffusion, 4), SPEC, 16, trained_steps=trained, **SMALL)
    metrics = train(algorithm, 2000)
    assert algorithm.iteration >= 3
    assert all(torch.isfinite(value) for row in metrics for value in row.values())
    assert "actor_loss" not in metrics[0] and "actor_loss" in metrics[-1]


def test_warm_up_leaves_the_policy_alone(diffusion):
    torch.manual_seed(0)
    algorithm = dppo(OpenLoop(diffusion, 4), SPEC, 16, **(SMALL | {"critic_warmup": 99}))
    before = [p.clone() for p in algorithm.actor.network.parameters()]
    train(algorithm, 1500)
    assert algorithm.updates and all(
        torch.equal(a, b) for a, b in zip(before, algorithm.actor.network.parameters(), strict=True)
    )


def test_the_first_update_starts_at_ratio_one(diffusion):
    torch.manual_seed(0)
    algorithm = dppo(OpenLoop(diffusion, 4), SPEC, 16, **(SMALL | {"critic_warmup": 0}))
    metrics = train(algorithm, 600)
    assert metrics[0]["approx_kl"].abs() < 1e-6 and metrics[0]["clipped"] == 0


@pytest.mark.parametrize("executed", [4, 3])
def test_correlated_noise_has_the_probability_of_its_distribution(diffusion, executed):
    """Against scipy's multivariate normal, at the last denoising step and at the one before it."""
    torch.manual_seed(0)
    actor = Denoised(diffusion, trained=2, min_std=0.3, correlation=0.7, executed=executed, max_noise=9.0)
    observation = PointMass(3, 0).observe()
    condition, _ = diffusion.encode(observation, diffusion.initial_state(3))
    output = actor.sample(condition, torch.randn(3, CHUNK, 2), deterministic=False)
    for index in range(2):
        x, after, step = output["chain"][:, index], output["chain"][:, index + 1], torch.full((3,), 3 + index)
        found, mean = actor.evaluate(x, after, step, condition)
        assert torch.allclose(found, output["log_prob"][:, index], atol=1e-5)
        std = actor.gaussian(actor.network, x, step, condition, 1.0)[1].clamp(min=0.3)
        rho = 0.7 if index else 0.0
        shape = torch.eye(executed) * (1 - rho) + rho
        for row in range(3):
            away = (after - mean)[row, :executed].detach().numpy()
            spread = (std[row].square().item() * shape).double().numpy()
            right = sum(multivariate_normal.logpdf(away[:, a], cov=spread) for a in range(2))
            assert found[row].item() == pytest.approx(right / (2 * executed), abs=1e-4)


def test_an_iteration_that_does_not_divide_into_batches_is_split_evenly(diffusion):
    torch.manual_seed(0)
    settings = SMALL | {"critic_warmup": 0, "trained_steps": 1, "batch_size": 99, "decisions": 100}
    metrics = train(dppo(OpenLoop(diffusion, 4), SPEC, 16, **settings), 1200)
    assert metrics and all(torch.isfinite(m["actor_loss"]) for m in metrics)


def test_target_kl_ends_an_iteration(diffusion):
    torch.manual_seed(0)
    settings = SMALL | {"critic_warmup": 0, "target_kl": 0.0, "epochs": 50, "actor_lr": 1e-2}
    algorithm = dppo(OpenLoop(diffusion, 4), SPEC, 16, **settings)
    metrics = train(algorithm, 600)
    assert len(metrics) < 20


def test_divergence_from_the_base_holds_it_back(diffusion):
    moved = []
    for weight in (0.0, 100.0):
        torch.manual_seed(0)
        settings = SMALL | {"base_kl": weight, "actor_lr": 3e-3, "epochs": 8}
        algorithm = dppo(OpenLoop(diffusion, 4), SPEC, 16, **settings)
        train(algorithm, 3000)
        pairs = zip(algorithm.actor.network.parameters(), diffusion.head.network.parameters(), strict=True)
        moved.append(sum(float((a - b).square().sum()) for a, b in pairs))
    assert moved[1] < moved[0] / 2


@pytest.mark.parametrize(
    "settings", [{}, {"critic_updates": 5, "critic_memory": 250, "noise_correlation": 0.8}]
)
def test_resume_is_bit_exact(diffusion, tmp_path, settings):
    def begin():
        torch.manual_seed(0)
        return dppo(OpenLoop(diffusion, 4), SPEC, 16, **(SMALL | settings))

    first = begin()
    train(first, 1480)
    assert len(first.decisions) and first.iteration >= 2
    # The collector closes what is under way before a checkpoint: here, begin new episodes.
    first.decisions._open.clear()
    first.save(tmp_path)
    second = begin()
    second.load(tmp_path)
    assert len(second.decisions) == len(first.decisions)
    for algorithm in (first, second):
        train(algorithm, 3000, Loop(PointMass(16, 9), algorithm.policy, algorithm.observe))
    assert first.updates == second.updates > 0
    for a, b in zip(first.actor.network.parameters(), second.actor.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_holds_what_acts(diffusion, tmp_path):
    torch.manual_seed(0)
    trained = dppo(OpenLoop(diffusion, 4), SPEC, 16, **(SMALL | {"actor_lr": 1e-2}))
    train(trained, 1500)
    trained.save(tmp_path, replay=False)
    fresh = dppo(OpenLoop(diffusion, 4), SPEC, 1, **(SMALL | {"actor_lr": 1e-2}))
    fresh.load(tmp_path, replay=False)
    actions = []
    for algorithm in (trained, fresh):
        torch.manual_seed(3)
        policy = algorithm.eval_policy
        actions.append(
            policy.act(PointMass(4, 0).observe(), policy.initial_state(4), deterministic=True)[0]["action"]
        )
    assert torch.equal(*actions)


def test_refusals(diffusion):
    with pytest.raises(UserError, match="trained_steps=9: the policy denoises in 5 steps"):
        dppo(OpenLoop(diffusion, 4), SPEC, 4, trained_steps=9)
    with pytest.raises(UserError, match="min_std=0"):
        dppo(OpenLoop(diffusion, 4), SPEC, 4, min_std=0.0)
    with pytest.raises(UserError, match="101 denoising steps"):
        dppo(OpenLoop(diffusion, 4), SPEC, 4, denoising_steps=101)
    with pytest.raises(UserError, match="demonstrations=none"):
        dppo(OpenLoop(diffusion, 4), SPEC, 4).add_demonstrations(None)
