"""``gaussian_nano``: likelihoods against scipy and torch's own mixtures, the untrained copy is the base, two modes stay two."""

import numpy as np
import pytest
import tiny
import torch
from scipy.special import logsumexp
from scipy.stats import norm

from vla_rl.checks.policy import check_policy
from vla_rl.errors import UserError
from vla_rl.policies.denoised import Denoised
from vla_rl.policies.gaussian_nano.configuration_gaussian_nano import GaussianNanoConfig
from vla_rl.policies.gaussian_nano.modeling_gaussian_nano import MixtureMLP
from vla_rl.policies.lerobot import LeRobotPolicy
from vla_rl.policies.noise_steered import noise_shape

SMALL = {"chunk_size": 6, "n_action_steps": 6, "hidden": [16], "std_first": 0.3, "camera_features": 8}


@pytest.fixture(scope="module", params=[1, 3])
def policy(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gaussian") / "policy"
    return LeRobotPolicy(tiny.lerobot_folder(folder, "gaussian_nano", modes=request.param, **SMALL))


def test_conforms(policy):
    check_policy(policy, tiny.env_spec(), steps=2)


def test_an_untrained_copy_is_the_base(policy):
    ours = Denoised(policy)
    theirs, _ = policy.act(tiny.observe(4), policy.initial_state(4))
    output, _ = ours.act(tiny.observe(4), ours.initial_state(4), deterministic=True)
    assert torch.equal(output["action"], theirs["action"])
    sampled, _ = ours.act(tiny.observe(4), ours.initial_state(4))
    x, step = sampled["chain"][:, 0], torch.zeros(4, dtype=torch.int64)
    _, now = ours.evaluate(x, sampled["chain"][:, 1], step, sampled["condition"])
    assert ours.from_base(now, x, step, sampled["condition"]).abs() < 1e-6
    with torch.no_grad():
        for weight in ours.network.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    _, now = ours.evaluate(x, sampled["chain"][:, 1], step, sampled["condition"])
    assert ours.from_base(now, x, step, sampled["condition"]) > 1e-3


@pytest.mark.parametrize("least", [0.1, 0.4])
def test_probability_is_the_distributions(policy, least):
    """scipy's; ``least`` is below and above what the policy has learned (0.3)."""
    ours = Denoised(policy, min_std=least, max_noise=2.0, executed=4)
    with torch.no_grad():
        for weight in (ours.network.layers[-1].weight, ours.network.layers[-1].bias):
            weight.mul_(0.2)  # modes near enough that no element's density is clamped
    torch.manual_seed(0)
    output, _ = ours.act(tiny.observe(5), ours.initial_state(5))
    drawn = output["chain"][:, 1]
    again, now = ours.evaluate(output["chain"][:, 0], drawn, torch.zeros(5).long(), output["condition"])
    mean = now.mean.detach().numpy().reshape(5, -1, 6, 3)
    each = norm.logpdf(drawn.numpy()[:, None], mean, max(least, 0.3))[:, :, :4].sum((2, 3))
    weights = np.zeros((5, 1)) if now.log_weights is None else now.log_weights.detach().numpy()
    assert np.exp(weights).sum(1) == pytest.approx(1, abs=1e-5)
    right = logsumexp(weights + each, axis=1) / (4 * 3)
    assert again.detach().numpy() == pytest.approx(right, abs=1e-5)
    assert torch.allclose(again, output["log_prob"][:, 0], atol=1e-6)
    again.sum().backward()
    assert all(p.grad is not None for p in ours.network.parameters())


def test_a_likely_chunk_still_has_a_gradient(policy):
    """Summed over a chunk the log-density passes DPPO's bound of 2, where the reference's mixture stops learning."""
    ours = Denoised(policy, min_std=0.1, max_noise=0.5)
    with torch.no_grad():
        ours.network.log_std.fill_(-3.0)  # below the floor
    output, _ = ours.act(tiny.observe(4), ours.initial_state(4))
    found, _ = ours.evaluate(
        output["chain"][:, 0], output["chain"][:, 1], torch.zeros(4).long(), output["condition"]
    )
    assert (found * 6 * 3 > 2).all() and (found < 2).all()
    found.sum().backward()
    assert ours.network.layers[-1].weight.grad.abs().sum() > 0


def test_cloning_is_maximum_likelihood(policy):
    """Against ``torch.distributions``, where the whole chunk lies inside its episode."""
    from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

    batch = policy.before({k: v for k, v in tiny.observe(5).items()} | {"action": torch.randn(5, 6, 3)})
    batch["observation.images.base"] = batch["observation.images.base"] / 255
    pad = torch.zeros(5, 6, dtype=torch.bool)
    loss, _ = policy.model.forward(batch | {"action_is_pad": pad})
    step = policy.model.head(policy.model.features(batch))
    if step.log_weights is None:
        right = Normal(step.mean, step.std.expand_as(step.mean)).log_prob(batch["action"]).mean()
    else:
        parts = Independent(Normal(step.mean, step.std.expand_as(step.mean)), 2)
        whole = MixtureSameFamily(Categorical(logits=step.log_weights), parts)
        right = whole.log_prob(batch["action"]).sum() / (5 * 6 * 3)
    assert loss.item() == pytest.approx(-right.item(), abs=1e-5)
    pad[:, 2:] = True
    batch["action"][:, 2:] = 99.0
    assert policy.model.forward(batch | {"action_is_pad": pad})[0] < 20, "what lies outside counts"


def test_two_ways_stay_two():
    """Demonstrations go left or right: one Gaussian learns the middle, a mixture both, and draws each."""
    found = {}
    for modes in (1, 2):
        torch.manual_seed(0)
        config = GaussianNanoConfig(device="cpu", modes=modes, hidden=[16])
        network = MixtureMLP(1, config, (2, 1))
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        side = (torch.randint(2, (64, 1, 1)) * 2.0 - 1).expand(64, 2, 1)
        for _ in range(150):
            step = network(torch.zeros(64, 1))
            normal = torch.distributions.Normal(
                step.mean.view(64, modes, 2, 1), step.std.view(1, modes, 1, 1)
            )
            each = normal.log_prob(side[:, None]).sum((2, 3))
            weights = torch.zeros(64, 1) if step.log_weights is None else step.log_weights
            loss = -torch.logsumexp(weights + each, 1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        mean, _ = network(torch.zeros(500, 1)).one_of_them(torch.Generator().manual_seed(1))
        found[modes] = mean.detach().flatten()
    assert found[1].abs().max() < 0.4
    assert (found[2].abs() - 1).abs().max() < 0.2 and 0.3 < (found[2] > 0).float().mean() < 0.7


def test_what_it_has_not(policy):
    with pytest.raises(UserError, match="denoising_steps=5: policies of type gaussian_nano have one step"):
        Denoised(policy, steps=5)
    with pytest.raises(UserError, match="takes no initial noise to steer"):
        noise_shape(policy)
    with pytest.raises(ValueError, match="in this order"):
        GaussianNanoConfig(device="cpu", std_first=0.01)
