"""RLPD and filtered behaviour cloning on the toy: they use what they should, resume, and learn."""

import pytest
import torch
from toy import SPEC, BiasedBase, Loop, PointMass, demonstrations, success_rate, train

from vla_rl.algorithms.factory import filtered_bc, rlpd
from vla_rl.algorithms.rlpd import Centre
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE

COMMON = {
    "observation_keys": [STATE, ENV_STATE],
    "hidden": [32, 32],
    "batch_size": 64,
    "warmup_steps": 800,
    "utd": 1.0,
}


def test_rlpd_has_no_base():
    torch.manual_seed(0)
    algorithm = rlpd(BiasedBase(), SPEC, 8, **COMMON)
    output, _ = algorithm.eval_policy.act(PointMass(3, 0).observe(), algorithm.eval_policy.initial_state(3))
    assert torch.equal(output["action"], torch.zeros(3, 2))  # the middle of the box
    assert isinstance(algorithm.eval_policy.base, Centre)
    with pytest.raises(UserError, match=r"algorithm\.gate"):
        rlpd(BiasedBase(), SPEC, 8, gate=True)


@pytest.mark.learning
def test_rlpd_learns_from_demonstrations():
    torch.manual_seed(0)
    algorithm = rlpd(BiasedBase(), SPEC, 8, critic_updates=200, critic_lr=1e-3, actor_lr=1e-3, **COMMON)
    algorithm.add_demonstrations(demonstrations(30, Centre(SPEC)))
    train(algorithm, 5000, envs=8)
    assert success_rate(algorithm.eval_policy) >= 0.3  # without: 0


def test_filtered_cloning_keeps_successes_only():
    torch.manual_seed(0)
    algorithm = filtered_bc(BiasedBase(), SPEC, 8, **COMMON)
    loop = Loop(PointMass(8, 1), algorithm.policy, algorithm.observe)
    while algorithm.steps < 800:
        loop.step()
    assert 0 < sum(loop.successes) < len(loop.successes)
    # Over as many steps as an episode may last, every stored transition is rewarded.
    batch = algorithm.experience.online.sample(256, 40, 1.0, torch.Generator().manual_seed(0))
    assert (batch["reward"] == 1.0).all()


def test_filtered_cloning_lives_on_demonstrations_until_something_succeeds():
    torch.manual_seed(0)
    algorithm = filtered_bc(BiasedBase(), SPEC, 8, **COMMON)
    algorithm.add_demonstrations(demonstrations(5, BiasedBase()))
    assert len(algorithm.experience.online) == 0
    assert torch.isfinite(algorithm.update()["actor_loss"])


def test_filtered_cloning_learns_from_demonstrations():
    torch.manual_seed(0)
    algorithm = filtered_bc(BiasedBase(), SPEC, 8, **COMMON)
    algorithm.add_demonstrations(demonstrations(30, BiasedBase()))
    base = success_rate(BiasedBase())
    train(algorithm, 4000, envs=8)
    assert success_rate(algorithm.eval_policy) > base + 0.2


def test_filtered_cloning_resumes(tmp_path):
    torch.manual_seed(0)
    one = filtered_bc(BiasedBase(), SPEC, 8, **COMMON)
    one.add_demonstrations(demonstrations(10, BiasedBase()))
    train(one, 900, envs=8)
    one.save(tmp_path)
    torch.manual_seed(3)
    two = filtered_bc(BiasedBase(), SPEC, 8, **COMMON)
    two.load(tmp_path)
    for algorithm in (one, two):
        algorithm.update()
    for a, b in zip(one.actor.parameters(), two.actor.parameters(), strict=True):
        assert torch.equal(a, b)


def test_filtered_cloning_leaves_out_undone_steps_and_replays_demonstrations_alone():
    torch.manual_seed(0)
    algorithm = filtered_bc(base=BiasedBase(), env_spec=SPEC, num_envs=1, **(COMMON | {"warmup_steps": 4}))
    loop, kept = Loop(PointMass(1, 0), algorithm.policy), []

    def observe(frames, rows):
        if len(kept) == 5:  # the sixth step undoes three
            frames["forget"] = torch.tensor([3])
        kept.append(frames)
        algorithm.observe(frames, rows)

    loop.sink = observe
    for _ in range(8):
        loop.step()
    assert len(algorithm.pending[0]) == 5
    algorithm.pending.clear()
    whole = torch.cat([frame.exclude("forget") for frame in kept])
    whole["final"][-1] = True
    algorithm.add_demonstrations(whole)
    before = algorithm.updates_due(1000)
    assert algorithm.update_offline()["actor_loss"] > 0
    assert (algorithm.updates_due(1000), algorithm.offline) == (before, 1)
