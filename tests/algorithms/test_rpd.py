"""RPD on the toy: a student with a teacher beside its reward; each loss against its closed form."""

import pytest
import torch
from toy import SPEC, PointMass, success_rate, train
from toy_gaussian import cloned
from toy_teacher import Teacher

from vla_rl.algorithms.factory import rpd
from vla_rl.algorithms.rpd import LOSSES, distance
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE
from vla_rl.policies.base import PolicySpec
from vla_rl.policies.lerobot import LeRobotPolicy
from vla_rl.policies.open_loop import OpenLoop

SMALL = {
    "decisions": 256,
    "epochs": 5,
    "batch_size": 128,
    "gamma": 0.95,
    "hidden": [32],
    "observation_keys": [STATE, ENV_STATE],
    "min_std": 0.1,
    "actor_lr": 1e-3,
}


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return LeRobotPolicy(cloned(tmp_path_factory.mktemp("student") / "gaussian"))


@pytest.mark.parametrize(("loss", "samples"), [("mse", 1), ("l1", 1), ("bc", 1), ("kl", 8)])
def test_the_student_comes_to_what_its_teacher_does(student, loss, samples):
    torch.manual_seed(0)
    teacher = Teacher(noise=0.1 if loss == "kl" else 0.0)
    algorithm = rpd(
        OpenLoop(student, 4), SPEC, 16, teacher=teacher, loss=loss, samples=samples, weight=5.0, **SMALL
    )
    before = success_rate(algorithm.eval_policy)
    metrics = train(algorithm, 12_000)
    found = [float(m["from_teacher"]) for m in metrics]
    assert sum(found[-20:]) < 0.7 * sum(found[:20]) or loss == "bc"
    assert success_rate(algorithm.eval_policy) > before + 0.15
    assert "teacher_weight" in metrics[-1]


def test_the_teacher_is_asked_once_per_state_and_all_rows_at_once(student):
    teacher = Teacher()
    algorithm = rpd(OpenLoop(student, 4), SPEC, 16, teacher=teacher, **SMALL)
    metrics = train(algorithm, 3000)
    assert len(metrics) > 5
    assert teacher.asked[0] == 16 and sum(teacher.asked) <= 3000 / 4 + 16 * 12


def test_a_weight_of_nothing_is_ppo(student):
    def learned(**settings):
        torch.manual_seed(3)
        algorithm = rpd(OpenLoop(student, 4), SPEC, 16, teacher=Teacher(), **SMALL, **settings)
        train(algorithm, 2500)
        return torch.cat([p.flatten() for p in algorithm.actor.network.parameters()])

    assert torch.equal(learned(weight=0.0), learned(weight=0.0, loss="l1"))
    assert not torch.equal(learned(weight=0.0), learned(weight=1.0))


def test_the_weight_falls_along_a_cosine(student):
    algorithm = rpd(OpenLoop(student, 4), SPEC, 16, teacher=Teacher(), anneal_steps=1000, weight=2.0, **SMALL)
    for steps, wanted in ((0, 2.0), (250, 1 + 0.5**0.5), (500, 1.0), (1000, 0.0), (5000, 0.0)):
        algorithm.steps = steps
        assert algorithm.weight == pytest.approx(wanted, abs=1e-6)


def test_single_actions_are_compared_with_the_first_of_a_chunk(student):
    algorithm = rpd(OpenLoop(student, 4), SPEC, 16, teacher=Teacher(length=0), **SMALL)
    assert algorithm.advised.length == 1
    output, _ = algorithm.advised.act(
        PointMass(16, 1).observe(), algorithm.advised.initial_state(16), deterministic=False
    )
    assert output["advice"].shape == (16, 1, 2) and (output["advice_std"] == 0).all()
    assert "from_teacher" in train(algorithm, 3000)[-1]


def test_advice_is_in_the_units_of_the_network(student):
    algorithm = rpd(OpenLoop(student, 4), SPEC, 8, teacher=Teacher(), **SMALL)
    seen = PointMass(8, 2).observe()
    advice = algorithm.advised.ask(seen, 8)["advice"]
    wanted = Teacher().act(seen, None)[0]["action"]
    assert torch.allclose(student.actions_of(advice), wanted, atol=1e-5)


def test_what_the_student_cannot_change_is_left_out(student, monkeypatch):
    whole = student.actions_of
    monkeypatch.setattr(student, "actions_of", lambda x: whole(x) * torch.tensor([1.0, 0.0]))
    algorithm = rpd(OpenLoop(student, 4), SPEC, 8, teacher=Teacher(), **SMALL)
    assert algorithm.advised.moves.tolist() == [[True, False]] * 4
    advice = algorithm.advised.ask(PointMass(8, 2).observe(), 8)["advice"]
    assert torch.isfinite(advice).all() and (advice[..., 1] == 0).all() and (advice[..., 0] != 0).any()


def test_a_student_whose_processors_bend_its_actions_is_refused(student, monkeypatch):
    whole = student.actions_of
    monkeypatch.setattr(student, "actions_of", lambda x: whole(x).clamp(max=0.5))
    with pytest.raises(UserError, match="not linear in its network's output"):
        rpd(OpenLoop(student, 4), SPEC, 8, teacher=Teacher(), **SMALL)


def test_cameras_are_rendered_for_the_teacher_too_but_not_for_the_student_alone(student):
    algorithm = rpd(OpenLoop(student, 4), SPEC, 4, teacher=Teacher(images=True), **SMALL)
    assert algorithm.policy.spec.image_keys == ("eye",) and algorithm.eval_policy.spec.image_keys == ()
    assert algorithm.policy.needs_images(algorithm.policy.initial_state(4)).all()
    assert not algorithm.eval_policy.needs_images(algorithm.eval_policy.initial_state(4)).any()


def test_losses_are_the_closed_forms():
    generator = torch.Generator().manual_seed(0)
    mean, theirs = (torch.randn(5, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    std, their_std = (torch.rand(5, 6, generator=generator, dtype=torch.float64) + 0.1 for _ in range(2))
    mine, other = torch.distributions.Normal(mean, std), torch.distributions.Normal(theirs, their_std)
    wanted = {
        "mse": (mean - theirs) ** 2,
        "l1": (mean - theirs).abs(),
        "bc": -mine.log_prob(theirs),
        "kl": torch.distributions.kl_divergence(mine, other),
    }
    assert set(wanted) == set(LOSSES)
    for kind, each in wanted.items():
        assert torch.allclose(distance(kind, mean, std, theirs, their_std), each.mean(1))


def test_resume_is_bit_exact_and_what_was_learned_acts_without_the_teacher(student, tmp_path):
    torch.manual_seed(0)
    first = rpd(OpenLoop(student, 4), SPEC, 16, teacher=Teacher(), **SMALL)
    train(first, 2000)
    first.save(tmp_path)
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        again = rpd(OpenLoop(student, 4), SPEC, 16, teacher=Teacher(), **SMALL)
        again.load(tmp_path)
        train(again, 4000)
        found.append(list(again.actor.network.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    alone = rpd(OpenLoop(student, 4), SPEC, 16, teacher=False, **SMALL)
    alone.load(tmp_path, replay=False)
    assert success_rate(alone.eval_policy) == success_rate(first.eval_policy)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss": "mae"}, "algorithm.loss=mae: choose from mse"),
        ({"loss": "kl"}, "set algorithm.samples=10"),
        ({"samples": 0}, "algorithm.samples=0"),
        ({"weight": -1.0}, "algorithm.weight=-1.0"),
        ({"teacher": {"device": "cpu"}}, "algorithm.teacher.path is not set"),
    ],
)
def test_wrong_settings_are_named(student, settings, said):
    with pytest.raises(UserError, match=said):
        rpd(OpenLoop(student, 4), SPEC, 4, **({"teacher": Teacher()} | SMALL | settings))


def test_a_teacher_of_another_robot_is_refused(student):
    teacher = Teacher()
    teacher.spec = PolicySpec(7, 4)
    with pytest.raises(UserError, match="7-dimensional actions, the student 2-dimensional"):
        rpd(OpenLoop(student, 4), SPEC, 4, teacher=teacher, **SMALL)
