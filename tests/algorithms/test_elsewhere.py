"""An algorithm in two halves, one acting and one learning, against the same in one piece."""

import pytest
import torch
from toy import SPEC, Loop, PointMass, train
from toy_diffusion import ToyDiffusion

from vla_rl.algorithms.elsewhere import learns_from_decisions
from vla_rl.algorithms.factory import dppo, dsrl, residual_td3
from vla_rl.keys import ENV_STATE, STATE
from vla_rl.learner.messages import flatten, pack, unflatten, unpack
from vla_rl.learner.process import load_weights, weights
from vla_rl.policies.open_loop import OpenLoop
from vla_rl.returns import gae

ROWS = 8
SEEN = {"hidden": [32], "observation_keys": [STATE, ENV_STATE]}


@pytest.fixture(scope="module")
def diffusion():
    return ToyDiffusion(bias=0.075)


def make(kind, base, rows=ROWS):
    torch.manual_seed(0)
    chunks = OpenLoop(base, 4)
    if kind == "dppo":
        return dppo(chunks, SPEC, rows, decisions=100, epochs=2, batch_size=100, **SEEN)
    return dsrl(chunks, SPEC, rows, variant=kind, warmup=60, first_updates=5, batch_size=32, utd=0.5, **SEEN)


def travelled(decisions, rows, steps):
    """As a collector sends it to a learner."""
    tensors = {} if decisions is None else flatten(decisions)
    message = pack("decisions", tensors, size=len(rows), rows=rows.tolist(), steps=steps)
    _, tensors, fields = unpack(message)
    rows = torch.tensor(fields["rows"], dtype=torch.long)
    return (unflatten(tensors, fields["size"]) if len(rows) else None), rows, fields["steps"]


@pytest.mark.parametrize("kind", ["dppo", "sac", "na"])
def test_two_halves_learn_bit_for_bit_what_one_does(diffusion, kind):
    whole, acting, learning = (make(kind, diffusion) for _ in range(3))
    train(whole, 1000, envs=ROWS)

    def sink(frames, rows):
        acting.assemble(frames, rows)
        learning.take_over(*travelled(*acting.hand_over()))

    loop = Loop(PointMass(ROWS, 1), acting.policy, sink)
    while learning.steps < 1000:
        loop.step()
        if learning.updates_due():
            while learning.updates_due():
                learning.update()
            load_weights(acting, weights(learning))
        acting.reach(**learning.reached())
    assert whole.updates == learning.updates > 10
    theirs = weights(learning)
    assert all(torch.equal(value, theirs[name]) for name, value in weights(whole).items())


def test_two_actors_fill_the_rows_of_one_learner(diffusion):
    learning, actors = make("dppo", diffusion, 2 * ROWS), [make("dppo", diffusion) for _ in range(2)]
    loops = [Loop(PointMass(ROWS, i), a.policy, a.assemble) for i, a in enumerate(actors)]
    for _ in range(30):
        for place, (loop, actor) in enumerate(zip(loops, actors, strict=True)):
            loop.step()
            decisions, rows, steps = actor.hand_over()
            learning.take_over(decisions, rows + place * ROWS, steps)
    assert learning.steps == 2 * 30 * ROWS
    assert set(learning.decisions.rows_over().tolist()) == set(range(2 * ROWS))


def test_after_an_actor_is_gone_nothing_follows_its_newest_decisions(diffusion):
    """The next decision in its rows is of another episode: the advantage must not run from it into the one before."""
    learning, actor = make("dppo", diffusion), make("dppo", diffusion)
    loop = Loop(PointMass(ROWS, 0), actor.policy, actor.assemble)
    for _ in range(9):
        loop.step()
    learning.take_over(*actor.hand_over())
    learning.interrupt(torch.tensor([0, 1]))
    ended = {row: [bool(d["ended"]) for d in learning.decisions._closed[row]] for row in range(3)}
    assert ended[0] == [False, True] == ended[1] and ended[2] == [False, False]
    batch = learning.decisions.take(
        lambda seen: torch.arange(len(seen["observation.state"])).float(), 0.9, 0.9
    )
    second = batch[:2]
    alone = gae(
        *(second[k][:, None] for k in ("reward", "value")),
        next_value=torch.tensor([[0.0], [1.0]]),
        terminated=second["terminated"][:, None],
        ended=second["ended"][:, None],
        gamma=0.9,
        lam=0.9,
    )
    assert torch.allclose(batch["advantage"][:2], alone[:, 0])


def test_who_learns_from_what(diffusion):
    from toy import BiasedBase

    assert learns_from_decisions(make("dppo", diffusion))
    assert not learns_from_decisions(residual_td3(BiasedBase(), SPEC, 2))
