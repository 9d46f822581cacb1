"""DPPO on the toy: it learns, goes on bit for bit, and refuses what cannot work."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import multivariate_normal
from toy import SPEC, Loop, PointMass, success_rate, train
from toy_diffusion import CHUNK, ToyDiffusion
from toy_gaussian import cloned

from vla_rl.algorithms.factory import dppo
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE
from vla_rl.policies.denoised import Denoised
from vla_rl.policies.lerobot import LeRobotPolicy
from vla_rl.policies.open_loop import OpenLoop

CAMERA = "observation.images.top"

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


@pytest.mark.parametrize("modes", [1, 3])
def test_gaussian_and_mixture_policies_learn_by_the_same_file(modes, tmp_path):
    torch.manual_seed(0)
    base = LeRobotPolicy(cloned(tmp_path / "policy", modes))
    algorithm = dppo(
        OpenLoop(base, 4),
        SPEC,
        64,
        decisions=1600,
        epochs=8,
        gamma=0.97,
        actor_lr=5e-4,
        critic_lr=3e-3,
        critic_warmup=1,
        clip=0.1,
        base_kl=0.01,
        hidden=[64, 64],
        observation_keys=[STATE, ENV_STATE],
    )
    before = success_rate(algorithm.eval_policy)
    metrics = train(algorithm, 30_000, envs=64)
    after = success_rate(algorithm.eval_policy)
    assert 0.1 < before < 0.4 and after > before + 0.25, (before, after)
    assert metrics[-1]["base_kl"] > 0


class Filmed(PointMass):
    """The point mass with a picture of itself."""

    def observe(self):
        picture = torch.zeros(self.num_envs, 3, 24, 24, dtype=torch.uint8)
        cell = ((self.position + 1.2) * 10).long().clamp(0, 23)
        picture[torch.arange(self.num_envs), :, cell[:, 1], cell[:, 0]] = 255
        return super().observe() | {CAMERA: picture}


@pytest.mark.parametrize("shift", [4, 0])
def test_a_critic_that_sees_cameras_is_trained_on_shifted_pictures(diffusion, shift):
    torch.manual_seed(0)
    settings = SMALL | {"observation_keys": [STATE, CAMERA], "image_features": 8, "encoder": "conv"}
    spec = replace(SPEC, cameras={CAMERA: (24, 24)})
    algorithm = dppo(OpenLoop(diffusion, 4), spec, 16, image_shift=shift, **settings)
    weights = {name: p.clone() for name, p in algorithm.encoder.named_parameters()}
    metrics = train(algorithm, 1200, Loop(Filmed(16, 1), algorithm.policy, algorithm.observe))
    assert all(torch.isfinite(value) for row in metrics for value in row.values())
    assert any(not torch.equal(p, weights[name]) for name, p in algorithm.encoder.named_parameters())
    # Nothing of the denoiser's condition is a picture: the frozen encoder has turned it into numbers once.
    loop = Loop(Filmed(16, 2), algorithm.policy, algorithm.observe)
    while not algorithm.ready:
        loop.step()
    algorithm._prepare()
    assert list(algorithm.batch["condition"].keys()) == ["seen"]
    which = torch.arange(len(algorithm.batch))
    losses = {algorithm.critic_loss_of(which).item() for _ in range(3)}
    assert len(losses) == (3 if shift else 1), "the shift is drawn anew for every update"
    seen = algorithm.batch["observation"]
    assert torch.equal(algorithm._values(seen), algorithm._values(seen)), (
        "values are of the pictures as they are"
    )


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
        found, now = actor.evaluate(x, after, step, condition)
        assert torch.allclose(found, output["log_prob"][:, index], atol=1e-5)
        rho = 0.7 if index else 0.0
        shape = torch.eye(executed) * (1 - rho) + rho
        for row in range(3):
            away = (after - now.mean)[row, :executed].detach().numpy()
            spread = (now.std[row].square().item() * shape).double().numpy()
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
    "settings",
    [{}, {"critic_updates": 5, "critic_memory": 250, "noise_correlation": 0.8, "time_limit": "end"}],
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
    first.decisions._elapsed = [0] * 16
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


@pytest.mark.learning
def test_compiled_updates_are_the_same(diffusion):
    """``compile`` changes the speed of the updates, and sums in their last digits."""
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        algorithm = dppo(OpenLoop(diffusion, 4), SPEC, 16, **(SMALL | {"compile": compiled}))
        found = train(algorithm, 1500)
        losses.append(torch.stack([m["actor_loss"] for m in found if "actor_loss" in m]))
        assert set(algorithm._modules()["denoiser"].keys()) == {
            k.replace(".", "/") for k, _ in diffusion.head.network.named_parameters()
        }
    torch.testing.assert_close(losses[0][:4], losses[1][:4], rtol=1e-3, atol=1e-6)
