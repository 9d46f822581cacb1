"""Residual off-policy RL: what it must never do, hand computations, resume, and learning on a toy in seconds."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import SPEC, BiasedBase, Loop, PointMass, demonstrations, success_rate

from vla_rl.algorithms.factory import residual_td3
from vla_rl.algorithms.residual_td3 import ResidualTD3, ResidualTD3Config
from vla_rl.errors import NonFiniteError, UserError
from vla_rl.keys import ENV_STATE, INSTRUCTION, STATE
from vla_rl.policies.base import reset_rows
from vla_rl.policies.residual import action_scale, preference

SMALL = {
    "observation_keys": [STATE, ENV_STATE],
    "hidden": [32, 32],
    "critics": 3,
    "batch_size": 64,
    "warmup_steps": 320,
    "critic_updates": 10,
    "capacity": 20_000,
    "demonstration_capacity": 2000,
}


def learner(seed: int = 0, envs: int = 8, **overrides) -> ResidualTD3:
    torch.manual_seed(seed)
    return ResidualTD3(ResidualTD3Config(**(SMALL | overrides)), BiasedBase(), SPEC, envs)


def train(algorithm, steps: int, envs: int = 8, seed: int = 1, watch=None) -> Loop:
    loop = Loop(PointMass(envs, seed), algorithm.policy, algorithm.observe)
    while algorithm.steps < steps:
        loop.step()
        for _ in range(algorithm.updates_due()):
            algorithm.update()
        if watch is not None:
            watch(algorithm)
    return loop


def test_a_fresh_residual_is_the_base():
    algorithm, base = learner(gate=False), BiasedBase()
    env, alone = PointMass(5, 3), PointMass(5, 3)
    state, base_state = algorithm.eval_policy.initial_state(5), base.initial_state(5)
    for _ in range(20):
        output, state = algorithm.eval_policy.act(env.observe(), state, deterministic=True)
        action, base_state = base.act(alone.observe(), base_state)
        assert torch.equal(output["action"], action["action"])
        env.step(output["action"]), alone.step(action["action"])


@settings(max_examples=40, deadline=None)
@given(scale=st.floats(0, 2), noise=st.floats(0, 3), seed=st.integers(0, 1000))
def test_actions_stay_in_the_box_and_near_the_base(scale, noise, seed):
    algorithm = learner(seed, scale=scale, gate=False)
    for p in algorithm.actor.parameters():
        torch.nn.init.normal_(p, std=2.0)
    algorithm.policy.enabled, algorithm.policy.noise = True, noise
    observation = PointMass(16, seed).observe()
    state = algorithm.policy.initial_state(16)
    free, _ = algorithm.policy.act(observation, state)
    assert (free["action"].abs() <= 1).all()
    bound, _ = algorithm.policy.act(observation, state, deterministic=True)
    assert ((bound["action"] - bound["base_action"][:, 0].clamp(-1, 1)).abs() <= scale + 1e-5).all()


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_exploration_keeps_its_size_whatever_its_correlation(correlation):
    algorithm = learner(gate=False, exploration_correlation=correlation, exploration=0.2)
    policy, state = algorithm.policy, algorithm.policy.initial_state(512)
    policy.enabled, policy.noise, policy.uniform_noise = False, 0.2, 0.0
    observation, drawn = PointMass(512, 0).observe(), []
    for _ in range(60):
        _, state = policy.act(observation, state)
        drawn.append(state["noise"])
    before, after = drawn[-2].flatten(), drawn[-1].flatten()
    assert torch.corrcoef(torch.stack([before, after]))[0, 1] == pytest.approx(correlation, abs=0.06)
    assert after.std() == pytest.approx(0.18, abs=0.02)  # of a normal clipped at two: 0.88 of 0.2
    seen = state["noise"].clone()
    state = reset_rows(policy, state, torch.arange(512) == 3)
    assert not state["noise"][3].any() and torch.equal(state["noise"][4:], seen[4:])


def test_a_dimension_with_scale_zero_is_left_to_the_base():
    algorithm = learner(scale=[0.5, 0.0], gate=False)
    for p in algorithm.actor.parameters():
        torch.nn.init.normal_(p)
    algorithm.policy.enabled, algorithm.policy.noise = True, 0.3
    output, _ = algorithm.policy.act(PointMass(4, 0).observe(), algorithm.policy.initial_state(4))
    assert torch.equal(output["action"][:, 1], output["base_action"][:, 0, 1])
    assert not torch.equal(output["action"][:, 0], output["base_action"][:, 0, 0])


def test_target_is_the_minimum_of_the_subset_and_the_best_choice():
    algorithm = learner(gate=True, target_noise=0.0, clip_target=False)
    features, base = torch.randn(6, algorithm.encoder.features), torch.rand(6, 1, 2) - 0.5
    for p in algorithm.actor.parameters():
        torch.nn.init.normal_(p)
    members = torch.tensor([2, 0])
    reward, discount = torch.rand(6), torch.rand(6)
    with torch.no_grad():
        got = algorithm._target(features, base, reward, discount, torch.zeros(6, 1, 2), members)
        edited = (base + algorithm.scale * algorithm.actor(features, base)).clamp(-1, 1)
        best = []
        for option in (base, edited):
            x = torch.cat([features, option[:, 0]], 1)
            best.append(algorithm.target_critic(x).squeeze(-1)[members].amin(0))
        wanted = reward + discount * torch.maximum(*best)
    assert torch.allclose(got, wanted, atol=1e-6)


def test_a_cautious_gate_takes_the_base_unless_critics_agree():
    values = torch.tensor([[[0.0, 1.0]], [[0.5, 0.6]]])  # gains 1.0 and 0.1: mean 0.55, std 0.64
    assert preference(values, 0.0).argmax(1).item() == 1
    assert preference(values, 1.0).argmax(1).item() == 0
    apart = torch.tensor([[[0.0, 0.5]], [[0.5, 1.0]]])  # values far apart, gains equal
    assert preference(apart, 1.0).argmax(1).item() == 1


def test_updates_are_earned_by_steps():
    algorithm = learner(utd=0.5)
    assert algorithm.updates_due(319) == 0
    algorithm.steps = 320
    assert algorithm.updates_due() == 10
    assert algorithm.updates_due(420) == 60


def test_resume_is_bit_exact(tmp_path):
    one = learner()
    one.add_demonstrations(demonstrations(8, BiasedBase()))
    train(one, 400)
    one.save(tmp_path)
    two = learner(seed=5)
    two.load(tmp_path)
    for algorithm in (one, two):
        for _ in range(6):
            algorithm.update()
    for a, b in zip(one.critic.parameters(), two.critic.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(one.actor.parameters(), two.actor.parameters(), strict=True):
        assert torch.equal(a, b)
    observation, state = PointMass(4, 0).observe(), one.policy.initial_state(4)
    one_act, two_act = (x.policy.act(observation, state)[0]["action"] for x in (one, two))
    assert torch.equal(one_act, two_act)


def test_bad_weights_are_never_written(tmp_path):
    algorithm = learner()
    with torch.no_grad():
        next(algorithm.actor.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="actor"):
        algorithm.save(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"subset": 9}, "algorithm.subset"),
        ({"gamma": 1.5}, "algorithm.gamma"),
        ({"scale": [0.1, 0.2, 0.3]}, "3 entries for 2 action dimensions"),
        ({"scale": 3.0}, "outside"),
        ({"observation_keys": ["observation.images.wrist"]}, "observation.images.wrist"),
        ({"n_step": 0}, "algorithm.n_step"),
        ({"target_every": 0}, "algorithm.target_every"),
        ({"actor_critics": 4}, "algorithm.actor_critics=4: 1 to algorithm.critics=3"),
        ({"precision": "float16"}, "algorithm.precision=float16: did you mean"),
    ],
)
def test_bad_settings_are_named(setting, words):
    with pytest.raises(UserError, match=words):
        learner(**setting)


def test_unknown_settings_are_named_with_the_nearest():
    with pytest.raises(UserError, match="n_step"):
        residual_td3(BiasedBase(), SPEC, 4, nstep=3)


def test_tasks_told_apart_by_the_sentence_alone():
    algorithm = learner(observation_keys=[STATE, INSTRUCTION])
    state = torch.zeros(2, 4)
    algorithm.encoder.normalizer.variance.fill_(1.0)
    features = algorithm.features({STATE: state, "task": ["push the cube", "pull the cube"]})
    assert not torch.equal(features[0], features[1])


def test_several_candidates_the_critic_chooses():
    torch.manual_seed(0)

    class Two(BiasedBase):
        def act(self, observation, state, *, deterministic=False):
            output, state = super().act(observation, state)
            other = -output["action"]
            output["base_candidates"] = torch.stack([output["action"], other], 1)
            return output, state

    config = ResidualTD3Config(**SMALL, candidates=2, gate=False)
    algorithm = ResidualTD3(config, Two(), SPEC, 4)
    train(algorithm, 340, envs=4)
    observation = PointMass(4, 0).observe()
    output, _ = algorithm.eval_policy.act(observation, algorithm.eval_policy.initial_state(4))
    assert output["base_action"].shape == (4, 2, 2)
    edits = algorithm.eval_policy.edits(algorithm.features(observation), output["base_action"])
    chosen = (output["action"][:, None] - edits).abs().sum(-1).amin(1)
    assert torch.allclose(chosen, torch.zeros(4), atol=1e-6)


def test_it_learns_and_never_falls_below_the_base():
    """A base that misses by 7.5 cm becomes one that does not; on the way success stays above the base's."""
    base = success_rate(BiasedBase())
    settings = {"hidden": [64, 64], "critics": 4, "batch_size": 128, "utd": 1.0}
    algorithm = learner(**settings, warmup_steps=1000, critic_updates=600, gate_margin=0.5)
    algorithm.add_demonstrations(demonstrations(20, BiasedBase()))
    seen = []

    def watch(algorithm):
        if algorithm.updates > 600 and algorithm.steps % 1000 == 0:
            seen.append(success_rate(algorithm.eval_policy, 100))

    train(algorithm, 7000, watch=watch)
    assert base < 0.5
    assert min(seen) >= base - 0.1
    assert success_rate(algorithm.eval_policy) >= 0.75


def test_products_in_bfloat16_give_nearly_the_same_updates_and_float32_weights():
    def updated(precision):
        algorithm = learner(precision=precision, warmup_steps=320, critic_updates=0, actor_every=1)
        return algorithm, train(algorithm, 480)

    exact, half = (updated(p)[0] for p in ("float32", "bfloat16"))
    for name, weights in half.critic.state_dict().items():
        assert weights.dtype == torch.float32
        moved = (exact.critic.state_dict()[name] - weights).norm() / weights.norm()
        assert moved < 0.1, name
    assert any((p != q).any() for p, q in zip(exact.actor.parameters(), half.actor.parameters(), strict=True))


def test_the_actor_may_climb_a_few_critics_at_a_time():
    algorithm = learner(actor_critics=1)
    features, base = torch.randn(5, algorithm.encoder.features), torch.rand(5, 1, 2)
    each = torch.stack([algorithm._actor_loss(features, base, torch.tensor([i]))[0] for i in range(3)])
    assert torch.allclose(each.mean(), algorithm._actor_loss(features, base)[0], atol=1e-6)
    before = algorithm.generator.get_state()
    learner()._update_actor(features, base)
    algorithm._update_actor(features, base)
    assert not torch.equal(before, algorithm.generator.get_state()), "which ones is drawn anew each time"


def test_targets_may_follow_every_second_update_only():
    algorithm = learner(target_every=2, warmup_steps=320, critic_updates=0)
    train(algorithm, 320)

    def moved():
        before = copy.deepcopy(algorithm.target_critic.state_dict())
        algorithm.update()
        return any(not torch.equal(before[k], v) for k, v in algorithm.target_critic.state_dict().items())

    start = algorithm.updates
    assert [moved() for _ in range(4)] == [(start + n) % 2 == 0 for n in range(1, 5)]


def test_the_gripper_has_a_scale_of_its_own():
    spec = replace(SPEC, action_names=("dx", "gripper"))
    assert action_scale(0.4, spec, 1.0).tolist() == pytest.approx([0.4, 1.0])
    assert action_scale(0.4, spec).tolist() == pytest.approx([0.4, 0.4])
    assert action_scale([0.1, 0.2], spec, 1.0).tolist() == pytest.approx([0.1, 0.2])
    with pytest.raises(UserError, match="gripper_scale=3"):
        action_scale(0.4, spec, 3.0)
