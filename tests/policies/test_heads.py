"""The step-wise view of each kind of head is LeRobot's own sampler, taken apart."""

import shutil
from types import SimpleNamespace

import pytest
import tiny
import torch
from scipy.stats import norm

from vla_rl.checks.policy import check_policy
from vla_rl.errors import UserError
from vla_rl.policies.denoised import Denoised
from vla_rl.policies.heads import head_of
from vla_rl.policies.lerobot import LeRobotPolicy
from vla_rl.policies.noise_steered import noise_shape

KINDS = ["vla_folder", "diffusion_folder", "dit_folder", "dit_flow_folder"]


def observe(count, task=tiny.TASKS[0]):
    generator = torch.Generator().manual_seed(1)
    return {
        "observation.state": torch.randn(count, 5, generator=generator),
        "observation.images.base": torch.randint(
            0, 255, (count, 3, 64, 64), generator=generator, dtype=torch.uint8
        ),
        "task": [task] * count,
    }


@pytest.fixture(params=KINDS)
def policy(request):
    return LeRobotPolicy(request.getfixturevalue(request.param))


def test_with_no_trained_step_it_is_the_base(policy):
    ours = Denoised(policy, trained=0, eval_eta=0.0)
    torch.manual_seed(3)
    theirs, _ = policy.act(observe(2), policy.initial_state(2))
    torch.manual_seed(3)
    output, _ = ours.act(observe(2), ours.initial_state(2), deterministic=True)
    assert torch.allclose(output["action"], theirs["action"], atol=1e-5)


def test_an_untrained_copy_is_the_base(policy):
    steps = policy.head.chain().steps
    for trained in (1, steps):
        ours = Denoised(policy, trained=trained, eval_eta=0.0)
        torch.manual_seed(3)
        theirs, _ = policy.act(observe(2), policy.initial_state(2))
        torch.manual_seed(3)
        output, _ = ours.act(observe(2), ours.initial_state(2), deterministic=True)
        assert torch.allclose(output["action"], theirs["action"], atol=1e-5)
        assert "chain" not in output


def test_deterministic_keeps_the_sampler_that_was_trained_without_its_floor(policy):
    """Its noise on the way stays (unless eval_eta says otherwise); exploration, which min_std is, goes."""
    condition, _ = policy.encode(observe(4), policy.initial_state(4))
    noise = torch.randn(4, *policy.head.shape)

    def ends(seed, **settings):
        torch.manual_seed(seed)
        return Denoised(policy, **settings).sample(condition, noise, deterministic=True)["x"]

    assert torch.equal(ends(0, min_std=5.0), ends(0, min_std=0.01))
    assert not torch.allclose(ends(0), ends(1), atol=1e-3)
    assert torch.equal(ends(0, eval_eta=0.0), ends(1, eval_eta=0.0))
    assert torch.equal(ends(0, eta=0.0), ends(0, eval_eta=0.0)), "None is what eta is"


def test_conditions_of_short_and_long_sentences_have_one_shape(policy):
    """Decisions of different moments, each with its own task, are learned from in one batch."""
    short, long = (
        policy.encode(observe(2, task=task), policy.initial_state(2))[0]
        for task in ("lift", "push the cube to the goal, and then a long way back to where it was")
    )
    both = torch.cat([short, long])
    ours = Denoised(policy, eval_eta=0.0)
    noise = torch.randn(4, *policy.head.shape)
    together = ours.sample(both, noise, deterministic=True)["x"]
    alone = ours.sample(long, noise[2:], deterministic=True)["x"]
    torch.testing.assert_close(together[2:], alone, atol=1e-4, rtol=1e-4)


def test_probabilities_of_the_chain_can_be_computed_again(policy):
    ours = Denoised(policy, trained=2, executed=3)
    torch.manual_seed(0)
    output, _ = ours.act(observe(4), ours.initial_state(4))
    assert output["chain"].shape == (4, 3, *policy.head.shape) and output["log_prob"].shape == (4, 2)
    for index in range(2):
        step = torch.full((4,), ours.frozen + index)
        again, _ = ours.evaluate(
            output["chain"][:, index], output["chain"][:, index + 1], step, output["condition"]
        )
        assert torch.allclose(again, output["log_prob"][:, index], atol=1e-5)
        assert again.requires_grad
    assert torch.equal(policy.actions_of(output["chain"][:, -1]), output["action"])


def test_only_the_copy_learns(policy):
    before = {k: v.clone() for k, v in policy.model.state_dict().items()}
    ours = Denoised(policy, trained=1)
    output, _ = ours.act(observe(2), ours.initial_state(2))
    step = torch.full((2,), ours.frozen)
    probability, _ = ours.evaluate(output["chain"][:, 0], output["chain"][:, 1], step, output["condition"])
    probability.sum().backward()
    learning = [p for p in ours.network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.1)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in learning)
    optimizer.step()
    for key, value in policy.model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_the_condition_is_heard(policy):
    ours = Denoised(policy, trained=0, eval_eta=0.0)
    chunks = []
    for scale in (1.0, -3.0):
        torch.manual_seed(3)
        seen = observe(2)
        seen["observation.state"] *= scale
        chunks.append(ours.act(seen, ours.initial_state(2), deterministic=True)[0]["action"])
    assert (chunks[0] - chunks[1]).abs().max() > 1e-4


def test_exploration_is_bounded(vla_folder):
    policy = LeRobotPolicy(vla_folder)
    ours = Denoised(policy, trained=1, eta=0.0, min_std=0.05, max_noise=1.5)
    output, _ = ours.act(observe(64), ours.initial_state(64))
    step = ours.step_at(
        ours.network, output["chain"][:, 0], torch.full((64,), ours.frozen), output["condition"], 0.0
    )
    away = (output["chain"][:, 1] - step.mean).abs()
    assert away.max() <= 0.05 * 1.5 + 1e-6 and away.max() > 0.05


def test_dit_conforms(dit_folder):
    check_policy(LeRobotPolicy(dit_folder), tiny.env_spec(), steps=2)


def test_dit_folder_can_be_moved(dit_folder, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(dit_folder, moved)
    first, second = LeRobotPolicy(dit_folder), LeRobotPolicy(moved)
    chunks = []
    for policy in (first, second):
        torch.manual_seed(0)
        chunks.append(policy.act(observe(1), policy.initial_state(1))[0]["action"])
    assert torch.equal(*chunks)
    assert str(dit_folder) not in "".join(f.read_text() for f in dit_folder.glob("*.json"))


def test_every_sentence_has_a_vector_of_its_own(dit_folder):
    policy = LeRobotPolicy(dit_folder)
    vectors = [policy.encode(observe(1, task), policy.initial_state(1))[0]["vector"] for task in tiny.TASKS]
    assert not torch.allclose(vectors[0], vectors[1]) and not torch.allclose(vectors[1], vectors[2])


def test_a_policy_without_steps_is_refused():
    model = SimpleNamespace(config=SimpleNamespace(type="vqbet"))
    with pytest.raises(UserError, match="vqbet policy has no denoising steps: choose one of diffusion"):
        head_of(model)


def test_a_regressed_chunk_is_a_gaussian_of_one_step(act_folder):
    policy = LeRobotPolicy(act_folder)
    seen = observe(4) | {"observation.environment_state": torch.randn(4, 4)}
    ours = Denoised(policy, min_std=0.2, max_noise=9.0, executed=3)
    theirs, _ = policy.act(seen, policy.initial_state(4))
    calm, _ = ours.act(seen, ours.initial_state(4), deterministic=True)
    assert torch.allclose(calm["action"], theirs["action"], atol=1e-5)
    torch.manual_seed(0)
    output, _ = ours.act(seen, ours.initial_state(4))
    drawn, step = output["chain"][:, 1], torch.zeros(4, dtype=torch.int64)
    again, now = ours.evaluate(output["chain"][:, 0], drawn, step, output["condition"])
    right = norm.logpdf(drawn.numpy(), now.mean.detach().numpy(), 0.2)[ours.part].mean((1, 2))
    assert again.detach().numpy() == pytest.approx(right, abs=1e-4)
    assert torch.allclose(again, output["log_prob"][:, 0], atol=1e-5)
    again.sum().backward()
    assert all(p.grad is None for p in policy.model.parameters())
    with pytest.raises(UserError, match="denoising_steps=5: policies of type act have one step"):
        Denoised(policy, steps=5)
    with pytest.raises(UserError, match="takes no initial noise to steer"):
        noise_shape(policy)


def test_more_trained_steps_than_there_are(dit_folder):
    with pytest.raises(UserError, match="trained_steps=9: the policy denoises in 3 steps"):
        Denoised(LeRobotPolicy(dit_folder), trained=9)


def test_the_likeliest_mode_brings_its_own_deviation():
    from vla_rl.policies.step import Step

    mean, std = torch.arange(2 * 3 * 2 * 1.0).view(2, 3, 2, 1), torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
    step = Step(mean, std, torch.tensor([[0.2, 0.7, 0.1], [0.1, 0.2, 0.7]]).log())
    found, spread = step.likeliest
    assert torch.equal(found, torch.stack([mean[0, 1], mean[1, 2]])) and torch.equal(found, step.centre)
    assert spread[0].unique().tolist() == [2.0] and spread[1].unique().tolist() == [3.0]
