"""On-policy distillation on the toy: the student becomes its teacher; each objective against its closed form."""

import copy

import numpy as np
import pytest
import scipy.special
import torch
from tensordict import TensorDict
from toy import SPEC, Loop, PointMass, success_rate, train
from toy_diffusion import ToyDiffusion
from toy_teacher import Teacher
from toy_tokens import BINS, ToyTokens

from vla_rl.algorithms.factory import opd
from vla_rl.algorithms.opd import OBJECTIVES, distilled
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE
from vla_rl.policies.open_loop import OpenLoop
from vla_rl.policies.spoken import Spoken
from vla_rl.policies.taught import Taught

SMALL = {
    "decisions": 128,
    "epochs": 2,
    "batch_size": 64,
    "actor_lr": 1e-3,
    "hidden": [16],
    "observation_keys": [STATE, ENV_STATE],
}


@pytest.fixture(scope="module")
def student():
    return ToyTokens(bias=0.06)


@pytest.fixture(scope="module")
def teacher():
    return ToyTokens(bias=0.0)


SLOW = {"reverse_sampled": pytest.mark.learning}
"""Needs twice the steps of the others, being the noisiest."""


@pytest.mark.parametrize("objective", [pytest.param(o, marks=SLOW.get(o, ())) for o in OBJECTIVES])
def test_the_student_becomes_its_teacher(student, teacher, objective):
    torch.manual_seed(0)
    algorithm = opd(OpenLoop(student, 4), SPEC, 16, teacher=teacher, objective=objective, **SMALL)
    before, wanted = success_rate(algorithm.eval_policy), success_rate(OpenLoop(teacher, 4))
    metrics = train(algorithm, 30_000 if objective == "reverse_sampled" else 16_000)
    after = success_rate(algorithm.eval_policy)
    assert wanted > before + 0.2, "the teacher has to be better"
    least = 0.25 if objective == "hard" else 0.5  # hard labels end lowest, as in the paper
    assert after > before + least * (wanted - before), (before, after, wanted)
    assert metrics[-1]["agreement"] > metrics[0]["agreement"]
    assert "q" not in metrics[-1] and metrics[-1]["critic_loss"] == 0


class Mute:
    """Acts as its teacher; its words are not told."""

    def __init__(self, teacher: ToyTokens) -> None:
        self.spec, self.act = teacher.spec, teacher.act
        self.initial_state, self.needs_images = teacher.initial_state, teacher.needs_images


def test_a_teacher_without_words_teaches_by_what_it_does(student, teacher):
    torch.manual_seed(0)
    settings = SMALL | {"teacher_blur": 0.1}
    algorithm = opd(OpenLoop(student, 4), SPEC, 16, teacher=Mute(teacher), **settings)
    before = success_rate(algorithm.eval_policy)
    train(algorithm, 16_000)
    assert success_rate(algorithm.eval_policy) > before + 0.1


def test_how_far_apart_they_are_in_new_states_is_told_task_by_task(student, teacher):
    torch.manual_seed(0)
    algorithm = opd(OpenLoop(student, 4), SPEC, 8, teacher=teacher, **SMALL | {"decisions": 32})
    actor = algorithm.actor
    actor.base = copy.copy(actor.base)
    actor.base.instructions = lambda c: ["left" if x < 0 else "right" for x in c["seen"][:, 0].tolist()]
    loop = Loop(PointMass(8, 1), algorithm.policy, algorithm.observe)
    while not algorithm.ready:
        loop.step()
    algorithm._prepare()
    batch = algorithm.batch
    with torch.no_grad():
        here = actor.evaluate(batch["condition"], batch["tokens"])[2].log_softmax(-1).double().numpy()
    there = batch["teacher"].double().numpy()
    each = scipy.special.rel_entr(np.exp(there), np.exp(here)).sum(-1).mean(1)
    left = (batch["condition"]["seen"][:, 0] < 0).numpy()
    assert 0 < left.sum() < len(left)
    wanted = {
        "disagreement": each.mean(),
        "disagreement/left": each[left].mean(),
        "disagreement/right": each[~left].mean(),
    }
    metrics = algorithm.update()
    while "disagreement" not in metrics:
        metrics = algorithm.update()
    for name, value in wanted.items():  # the teacher's are kept in half precision
        assert float(metrics[name]) == pytest.approx(value, rel=1e-2), name


ASKING = SMALL | {"objective": "forward", "memory": 2000, "ask_every": 2}


def test_the_teacher_may_be_asked_within_chunks_too(student, teacher, tmp_path):
    torch.manual_seed(0)
    algorithm = opd(OpenLoop(student, 4), SPEC, 8, teacher=Mute(teacher), **ASKING | {"decisions": 32})
    env = PointMass(8, 1)
    loop, met = Loop(env, algorithm.policy, algorithm.observe), []
    while not algorithm.ready:
        met.append(torch.cat([env.observe()[STATE], env.observe()[ENV_STATE]], 1))
        loop.step()
    began = len(algorithm.decisions)
    algorithm._prepare()
    kept = algorithm.memory.rows[: len(algorithm.memory)]
    # Each decision is of four steps, in the middle of which the teacher is asked once more, unless the episode is over.
    assert began < len(kept) <= 2 * began and kept["own"].all()
    within = kept[began:]
    places = torch.cat(met)
    assert all((places == seen).all(1).any() for seen in within["condition"]["seen"]), "states that were met"
    assert not set(map(tuple, within["condition"]["seen"].tolist())) & set(
        map(tuple, kept[:began]["condition"]["seen"].tolist())
    )
    seen = within["condition"]["seen"]
    state = {STATE: seen[:, : SPEC.state_dim], ENV_STATE: seen[:, SPEC.state_dim :]}
    wanted = teacher.act(state, teacher.initial_state(len(seen)))[0]["action"]
    words = student.token_head.tokens_of(wanted)
    assert (within["teacher"].argmax(-1) == words).all()
    assert algorithm.left == 2 * algorithm._batches(began), "more states, not more updates"
    algorithm.update()
    while algorithm.left:
        algorithm.update()
    algorithm.save(tmp_path / "saved")
    again = opd(OpenLoop(student, 4), SPEC, 8, teacher=Mute(teacher), **ASKING | {"decisions": 32})
    again.load(tmp_path / "saved")
    assert (again.memory.rows[: len(kept)]["teacher"] == kept["teacher"]).all()


def test_what_was_noticed_within_chunks_survives_a_resume_and_the_way_to_another_process(
    student, teacher, tmp_path
):
    def make():
        torch.manual_seed(0)
        return opd(OpenLoop(student, 4), SPEC, 8, teacher=Mute(teacher), **ASKING | {"decisions": 64})

    first, later, learner = make(), make(), make()
    loop = Loop(PointMass(8, 1), first.policy, first.observe)
    for _ in range(30):
        loop.step()
    first.save(tmp_path / "half")
    later.load(tmp_path / "half")
    over, rows, steps = first.hand_over()
    between = over["between"]
    noticed = between["condition"]["seen"][between["there"]].tolist()
    assert 0 < len(noticed) <= len(over) < 64
    sent = TensorDict(dict(over.flatten_keys("/").items()), over.batch_size).unflatten_keys("/")
    learner.take_over(sent, rows, steps)
    for algorithm in (later, learner):  # both go on with decisions made here
        loop = Loop(PointMass(8, 2), algorithm.policy, algorithm.observe)
        while not algorithm.ready:
            loop.step()
        algorithm._prepare()
        kept = set(map(tuple, algorithm.memory.rows["condition"]["seen"].tolist()))
        assert len(algorithm.memory) > 64 and all(tuple(seen) in kept for seen in noticed)


def test_asked_within_chunks_it_teaches(student, teacher):
    torch.manual_seed(0)
    algorithm = opd(OpenLoop(student, 4), SPEC, 16, teacher=Mute(teacher), **ASKING)
    metrics = train(algorithm, 8000)
    assert metrics[-1]["disagreement"] < 0.5 * metrics[0]["disagreement"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"memory": 0}, "with memory above 0"),
        ({"objective": "reverse"}, "is for objective=forward or hard"),
        ({"ask_every": -1}, "algorithm.ask_every=-1"),
    ],
)
def test_where_nobody_can_be_asked_within_chunks(student, teacher, changed, says):
    with pytest.raises(UserError, match=says):
        opd(OpenLoop(student, 4), SPEC, 8, teacher=Mute(teacher), **ASKING | changed)
    with pytest.raises(UserError, match="is for teachers that act"):
        opd(OpenLoop(student, 4), SPEC, 8, teacher=teacher, **ASKING)


@pytest.mark.parametrize(("reward_weight", "passes"), [(0.0, 1), (0.1, 2)])
def test_the_students_own_words_are_scored_anew_only_for_the_reward(student, teacher, reward_weight, passes):
    settings = SMALL | {"objective": "forward", "reward_weight": reward_weight, "critic_warmup": 0}
    algorithm = opd(OpenLoop(student, 4), SPEC, 16, teacher=Mute(teacher), **settings)
    made, evaluate = [], algorithm.actor.evaluate
    algorithm.actor.evaluate = lambda *args: made.append(torch.is_grad_enabled()) or evaluate(*args)
    metrics = train(algorithm, 1500)
    assert len(metrics) and sum(made) == passes * len(metrics)
    assert all(("approx_kl" in each) == (reward_weight > 0) for each in metrics)


def test_what_token_ppo_or_distillation_has_learned_teaches_by_its_words(student, teacher):
    learned = Spoken(teacher)
    with torch.no_grad():
        learned.network.place.weight.add_(0.5)
    algorithm = opd(OpenLoop(student, 4), SPEC, 8, teacher=learned, **SMALL)
    assert isinstance(algorithm.taught, Taught)
    output, _ = algorithm.taught.act(PointMass(8, 1).observe(), algorithm.taught.initial_state(8))
    scored = algorithm.taught.teach(output)
    now = learned.network.logits(output["lesson"], output["tokens"]).log_softmax(-1)
    assert torch.allclose(scored.float().exp(), now.exp(), atol=0.002)
    before = teacher.token_head.network.logits(output["lesson"], output["tokens"]).log_softmax(-1)
    assert not torch.allclose(now.exp(), before.exp(), atol=0.1)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_teacher_of_single_actions_speaks_of_the_first_words_only(student, objective):
    torch.manual_seed(0)
    algorithm = opd(
        OpenLoop(student, 4), SPEC, 16, teacher=Teacher(length=0), **SMALL | {"objective": objective}
    )
    metrics = train(algorithm, 1500)
    assert algorithm.taught.length == 1 and all(torch.isfinite(m["actor_loss"]) for m in metrics)


def test_an_action_becomes_a_gaussian_around_its_word(student):
    algorithm = opd(OpenLoop(student, 4), SPEC, 16, teacher=Teacher(), teacher_blur=0.0875, **SMALL)
    taught, words = algorithm.taught, torch.arange(BINS)
    advice = student.token_head.normalised(words.repeat_interleave(8)[None].view(BINS, 8))
    batch = TensorDict({"advice": advice, "advice_std": torch.zeros_like(advice)}, [BINS])
    chances = taught.teach(batch).exp()
    assert torch.equal(chances.argmax(-1), words[:, None].expand(-1, 8))
    wanted = torch.softmax(-((words[None] - words[:, None]) ** 2) / (2 * 0.7**2), 1)
    assert torch.allclose(chances[:, 3], wanted, atol=1e-5)
    batch["advice_std"] += 1.0
    assert (taught.teach(batch).exp().amax(-1) < chances.amax(-1)).all()


def test_objectives_are_the_closed_forms():
    torch.manual_seed(0)
    here = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    student, teacher = here.log_softmax(-1), torch.randn(3, 5, 7, dtype=torch.float64).log_softmax(-1)
    tokens = torch.randint(7, (3, 5))
    s, t = student.detach().exp().numpy(), teacher.exp().numpy()
    old = student.detach().gather(-1, tokens[..., None])[..., 0]

    def found(name):
        return distilled(name, student, teacher, tokens, old, 2.0)

    np.testing.assert_allclose(found("reverse").detach(), (s * np.log(s / t)).sum(-1), atol=1e-12)
    np.testing.assert_allclose(found("forward").detach(), (t * np.log(t / s)).sum(-1), atol=1e-12)
    best = t.argmax(-1)[..., None]
    np.testing.assert_allclose(found("hard").detach(), -np.log(np.take_along_axis(s, best, -1))[..., 0])
    # The gradient of KL(s || t) in the logits is s (log s/t - KL).
    (gradient,) = torch.autograd.grad(found("reverse").sum(), here, retain_graph=True)
    log = np.log(s / t)
    np.testing.assert_allclose(gradient, s * (log - (s * log).sum(-1, keepdims=True)), atol=1e-12)
    # On average over the words that the student draws, the sampled objective has the same gradient.
    total = torch.zeros_like(gradient)
    for word in range(7):
        chosen = torch.full((3, 5), word)
        chance = student.detach().exp()[..., word]
        loss = distilled("reverse_sampled", student, teacher, chosen, student.detach()[..., word], 2.0)
        total += torch.autograd.grad((loss * chance).sum(), here, retain_graph=True)[0]
    np.testing.assert_allclose(total, gradient, atol=1e-12)


def test_a_word_that_has_become_likelier_counts_more_up_to_the_cap():
    here = torch.tensor([[[0.8, 0.2]]]).log().requires_grad_(True)
    there = torch.tensor([[[0.5, 0.5]]]).log()
    losses = [
        distilled(
            "reverse_sampled", here, there, torch.tensor([[0]]), torch.tensor([[old]]).log(), 2.0
        ).item()
        for old in (0.8, 0.5, 0.1)
    ]
    assert losses[1] == pytest.approx(1.6 * losses[0]) and losses[2] == pytest.approx(2 * losses[0])


def test_the_first_iterations_may_have_another_objective(student, teacher):
    settings = SMALL | {"objective": "reverse", "first_objective": "forward", "first_iterations": 2}
    algorithm = opd(OpenLoop(student, 4), SPEC, 16, teacher=teacher, **settings)
    assert algorithm.objective == "forward"
    train(algorithm, 4000)
    assert algorithm.iteration > 2 and algorithm.objective == "reverse"


def test_updates_draw_from_kept_decisions_too_and_number_as_many(student, teacher):
    torch.manual_seed(0)
    algorithm = opd(OpenLoop(student, 4), SPEC, 16, teacher=teacher, **SMALL | {"memory": 1000})
    sizes, asked, step = set(), [], algorithm.actor_loss_of

    def spy(which, unit):
        sizes.add(len(algorithm.batch))
        asked.append(len(which))
        return step(which, unit)

    algorithm.actor_loss_of = spy  # type: ignore[method-assign]
    metrics = train(algorithm, 8000)
    assert max(sizes) == 1000 and min(sizes) < 200, sizes
    assert algorithm.updates / algorithm.iteration < 6, (
        "updates follow the new decisions, not all that are kept"
    )
    assert 40 < sum(asked) / len(asked) < 90
    assert metrics[-1]["agreement"] > metrics[0]["agreement"]


def test_the_step_size_falls_in_a_line_to_a_tenth(student, teacher):
    algorithm = opd(OpenLoop(student, 4), SPEC, 16, teacher=teacher, **SMALL | {"actor_lr_steps": 6000})
    rates = []
    for steps in (2000, 4000, 8000):
        train(algorithm, steps)
        rates.append(algorithm.actor_optimizer.param_groups[0]["lr"])
    assert 1e-3 > rates[0] > rates[1] > rates[2] == pytest.approx(1e-4)


def test_reward_beside_the_teacher(student, teacher):
    torch.manual_seed(0)
    settings = SMALL | {"reward_weight": 0.5, "critic_updates": 5}
    algorithm = opd(OpenLoop(student, 4), SPEC, 16, teacher=teacher, **settings)
    metrics = train(algorithm, 3000)
    assert metrics[-1]["critic_loss"] > 0 and "clipped" in metrics[-1]


def test_the_teacher_is_asked_once_per_decision(student, teacher, monkeypatch):
    torch.manual_seed(0)
    algorithm = opd(OpenLoop(student, 4), SPEC, 16, teacher=teacher, **(SMALL | {"epochs": 8}))
    asked = []
    logits = teacher.token_head.network.logits
    monkeypatch.setattr(
        teacher.token_head.network, "logits", lambda c, t: asked.append(len(t)) or logits(c, t)
    )
    train(algorithm, 3000)
    decisions = algorithm.iteration * SMALL["decisions"]
    assert decisions <= sum(asked) < 1.5 * decisions


def test_a_teacher_whose_words_mean_other_actions(student):
    other = ToyTokens(updates=1)
    other.actions_of_tokens = lambda tokens: 0.5 * other.token_head.normalised(tokens)  # type: ignore[method-assign]
    with pytest.raises(
        UserError, match="the same word is another action: number 0 goes from -0.4688 to 0.4688"
    ):
        opd(OpenLoop(student, 4), SPEC, 4, teacher=other, **SMALL)
    wide = ToyTokens(updates=1)
    wide.token_head.bins = 2 * BINS
    with pytest.raises(UserError, match="its bins are 32, the student's 16"):
        opd(OpenLoop(student, 4), SPEC, 4, teacher=wide, **SMALL)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"objective": "revers"}, "algorithm.objective=revers: choose from reverse, "),
        (
            {"teacher": ToyDiffusion(updates=1), "teacher_blur": 0.0},
            "algorithm.teacher_blur=0.0 must be above 0",
        ),
        ({"teacher": ToyDiffusion(updates=1), "samples": 0}, "algorithm.samples=0 must be at least 1"),
        ({"teacher": None}, "algorithm.teacher.path is not set"),
        ({"memory": 100, "reward_weight": 0.1}, "algorithm.memory=100: reward and reverse_sampled learn"),
        ({"memory": 100, "first_objective": "reverse_sampled"}, "set memory=0"),
        ({"drawn_steps": 1}, "algorithm.drawn_steps=1 is of token PPO"),
        ({"actor_lr_steps": 0}, "algorithm.actor_lr_steps=0 must be at least 1"),
        ({"time_limit": "never"}, "algorithm.time_limit=never: choose bootstrap or end"),
    ],
)
def test_bad_settings(student, teacher, settings, says):
    with pytest.raises(UserError, match=says):
        opd(OpenLoop(student, 4), SPEC, 4, **(SMALL | {"teacher": teacher} | settings))


@pytest.mark.parametrize("more", [{}, {"memory": 300, "actor_lr_steps": 5000}])
def test_resume_is_bit_exact_and_what_was_learned_acts_alone(student, teacher, tmp_path, more):
    torch.manual_seed(0)
    settings = SMALL | more
    first = opd(OpenLoop(student, 4), SPEC, 16, teacher=teacher, **settings)
    train(first, 2000)
    first.save(tmp_path / "a")
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        again = opd(OpenLoop(student, 4), SPEC, 16, teacher=teacher, **settings)
        again.load(tmp_path / "a")
        train(again, 4000)
        found.append(list(again.actor.network.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    alone = opd(OpenLoop(student, 4), SPEC, 16, teacher=False, **settings)  # acts without the teacher
    alone.load(tmp_path / "a", replay=False)
    assert success_rate(alone.eval_policy) == success_rate(first.eval_policy)
