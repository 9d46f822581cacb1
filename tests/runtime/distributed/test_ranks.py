"""Two learners in processes of their own that make every update together, over gloo."""

import functools
import json
import multiprocessing
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_learner import ALGORITHM, MINE, collector, settings, stored_in
from toy import SPEC, Loop, PointMass
from toy_diffusion import ToyDiffusion

from vla_rl.algorithms.descent import descend
from vla_rl.algorithms.factory import dppo, dsrl
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE
from vla_rl.learner.messages import flatten, pack
from vla_rl.learner.process import load_weights, weights
from vla_rl.policies.open_loop import OpenLoop
from vla_rl.runtime.distributed import learner as learner_module
from vla_rl.runtime.distributed.batches import check_places, part_of
from vla_rl.runtime.distributed.learner import DistributedLearner
from vla_rl.runtime.distributed.ranks import Ranks
from vla_rl.runtime.distributed.settings import share_of_one

sys.path.insert(0, str(Path(__file__).parents[2] / "data"))
TOGETHER = ALGORITHM | {"batch_size": 32, "critic_updates": 40}


PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["vla_rl.algorithms.factory", "vla_rl.runtime.distributed.learner", "torch.distributed.fsdp"]
)
"""Imported once, in the process that all others are forked from, which takes longer than most of the tests."""


def in_two(work, *arguments):
    """What ``work(rank, meeting, *arguments)`` returns in two processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = f"127.0.0.1:{probe.getsockname()[1]}"
    with PROCESSES.Pool(2) as pool:
        return pool.starmap_async(work, [(rank, meeting, *arguments) for rank in range(2)]).get(240)


@functools.cache
def toy():
    """Made once in each process: cloning it takes longer than what is tested."""
    return ToyDiffusion(bias=0.075, updates=300)


def base():
    return OpenLoop(toy(), 4)


def step_on_half(rank, meeting, data):
    ranks = Ranks(rank, 2, meeting)
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1), torch.nn.Linear(1, 1)
    )
    model.load_state_dict(data["model"])
    unused = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([*model.parameters(), unused], lr=0.01)
    x, y = data["x"].chunk(2)[rank], data["y"].chunk(2)[rank]
    for _ in range(5):
        loss = (model(x) - y).square().mean() + (unused.sum() * 0.1 if rank else 0.0)
        descend(optimizer, loss, grad_clip=0.5)
    return (
        {k: v.numpy() for k, v in model.state_dict().items()},
        unused.detach().numpy(),
        ranks.sums(1.0, rank),
    )


def test_two_halves_of_a_batch_make_the_step_of_the_whole():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1), torch.nn.Linear(1, 1)
    )
    data = {
        "model": {k: v.clone() for k, v in model.state_dict().items()},
        "x": torch.randn(16, 3),
        "y": torch.randn(16, 1),
    }
    found = in_two(step_on_half, data)
    unused = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([*model.parameters(), unused], lr=0.01)
    for _ in range(5):
        descend(
            optimizer, (model(data["x"]) - data["y"]).square().mean() + unused.sum() * 0.05, grad_clip=0.5
        )
    for theirs, touched, sums in found:
        for name, value in model.state_dict().items():
            assert torch.allclose(torch.from_numpy(theirs[name]), value, atol=1e-6)
        assert torch.allclose(torch.from_numpy(touched), unused, atol=1e-6), (
            "one rank's loss alone touches it"
        )
        assert sums == [2.0, 1.0]


def learn(rank, meeting, folder, goal):
    """One learner and the collector of its place, up to ``goal`` steps of both; then a checkpoint of both."""
    torch.set_num_threads(1)
    mine = settings(folder, learners=2, rank=rank, meeting=meeting, algorithm=TOGETHER, steps=goal)
    learner = DistributedLearner(mine)
    begun = learner.learner.steps
    collector(rank, learner).run()
    assert learner.settle(60.0) == 0
    said = learner.save(str(Path(folder) / part_of(rank)))
    frames = sum(stored_in(learner, row) for row in range(2))
    sent = {k: v.numpy().copy() for k, v in weights(learner.learner).items()}
    return {
        "weights": sent,
        "updates": learner.learner.updates,
        "steps": said["steps"],
        "begun": begun,
        "own": {place: slot["steps"] for place, slot in said["distributed"].items()},
        "frames": frames,
        "draw": int(learner.learner.generator.get_state().sum()),
    }


def test_two_learners_stay_equal_each_with_the_frames_of_its_own_collectors(tmp_path):
    found = in_two(learn, str(tmp_path), 400)
    first, second = found
    assert first["updates"] == second["updates"] > 20 and first["steps"] == second["steps"] >= 400
    assert set(first["own"]) == {0} and set(second["own"]) == {1}
    for each in found:
        assert each["frames"] == next(iter(each["own"].values())) > 50, (
            "its own frames, all of them, no others"
        )
    assert sum(next(iter(each["own"].values())) for each in found) == first["steps"]
    assert first["draw"] != second["draw"], "they draw different batches"
    for name, value in first["weights"].items():
        assert (value == second["weights"][name]).all(), name


def iterate(rank, meeting, target_kl):
    """Three iterations of DPPO, of which one rank has more decisions than the other."""
    torch.set_num_threads(1)
    Ranks(rank, 2, meeting)
    torch.manual_seed(0)
    more = {
        "hidden": [32],
        "observation_keys": [STATE, ENV_STATE],
        "target_kl": target_kl,
        "critic_updates": 5,
    }
    settings = {"decisions": 60, "epochs": 3, "batch_size": 50, "critic_warmup": 1, "actor_lr": 1e-3}
    learner = dppo(base(), SPEC, 8, **settings, **more)
    learner.reseed(rank)
    loop, made, had = Loop(PointMass(8, rank), learner.policy, learner.observe), [], []
    for _ in range(3):
        before = learner.updates
        while not learner.ready:
            loop.step()
        for _ in range(12 * rank):
            loop.step()
        had.append(learner._collected)
        learner.update()
        while learner.left:
            learner.update()
        made.append(learner.updates - before)
    state = {k: v.numpy().copy() for m in learner._modules().values() for k, v in m.state_dict().items()}
    return {"made": made, "had": had, "state": state}


def test_learners_on_policy_begin_and_end_every_iteration_together():
    first, second = in_two(iterate, 1e-4)
    assert first["made"] == second["made"] and len(first["made"]) == 3
    assert first["had"] != second["had"], "each has decisions of its own"
    assert min(first["made"][1:]) < first["made"][0], (
        "one stop for both; the first iteration is the critic's alone"
    )
    assert any("normalizer" in name for name in first["state"])
    for name, value in first["state"].items():
        assert (value == second["state"][name]).all(), name


NOISE = {
    "_target_": "vla_rl.algorithms.factory.dsrl",
    "warmup": 40,
    "first_updates": 5,
    "batch_size": 32,
    "utd": 0.5,
    "hidden": [32],
    "observation_keys": [STATE, ENV_STATE],
    "capacity": 4000,
}


def steer(rank, meeting, folder, variant, goal):
    """One learner of noise and its collector, which has 2 or 6 rows, up to ``goal`` decisions of both; then a checkpoint."""
    torch.set_num_threads(1)
    base = OpenLoop(ToyDiffusion(flow=True, updates=100), 4)
    learner_module._base = lambda _: base
    algorithm = NOISE | {"variant": variant}
    learner = DistributedLearner(
        settings(
            folder,
            learners=2,
            rank=rank,
            meeting=meeting,
            algorithm=algorithm,
            env=SPEC,
            rows=6,
            steps=10**6,
            base=base.spec,
        )
    )
    joined, rows = learner.join(rank, MINE), 2 + 4 * rank
    acting = dsrl(base, SPEC, rows, **{k: v for k, v in algorithm.items() if k != "_target_"})
    loop = Loop(PointMass(rows, rank), acting.policy, acting.assemble)
    number, answer = 0, learner.hail()
    while answer["reached"]["decided"] < goal:
        for _ in range(4):
            loop.step()
        over, where, steps = acting.hand_over()
        fields = {"rows": where.tolist(), "steps": steps, "version": answer["version"], "episodes": []}
        message = pack("decisions", {} if over is None else flatten(over), size=len(where), **fields)
        answer = learner.push(rank, joined["generation"], number, message)
        acting.reach(**answer["reached"])
        number += 1
        time.sleep(0.01)
    assert learner.settle(60.0) == 0
    said = learner.save(str(Path(folder) / "checkpoints" / "1" / part_of(rank)))
    return {
        "weights": {
            k: v.numpy().copy()
            for m in learner.learner._modules().values()
            for k, v in m.state_dict().items()
        },
        "updates": learner.learner.updates,
        "reached": learner.learner.reached(),
        "own": said["distributed"][rank],
        "kept": len(learner.learner.ring),
    }


@pytest.mark.parametrize("variant", ["sac", "na"])
def test_two_learners_of_noise_make_every_update_together(tmp_path, variant):
    found = in_two(steer, str(tmp_path), variant, 200)
    first, second = found
    earned = 5 + int((first["reached"]["decided"] - 40) * 0.5)
    assert first["reached"] == second["reached"] and first["updates"] == second["updates"] == earned
    for name, total in first["reached"].items():
        assert first["own"][name] + second["own"][name] == total, "every one counted, once"
    assert all(each["kept"] == each["own"]["decided"] for each in found), (
        "each has those of its own collectors"
    )
    assert first["own"]["decided"] < second["own"]["decided"]
    for name, value in first["weights"].items():
        assert (value == second["weights"][name]).all(), name


def test_what_does_not_divide_is_refused(tmp_path):
    with pytest.raises(UserError, match="batch_size=16 cannot be divided among num_learners=3"):
        settings(tmp_path, learners=3).mine()
    halved = settings(tmp_path, learners=2).mine()
    assert halved["batch_size"] == 8 and halved["capacity"] == 2000 and "decisions" not in halved
    on_policy = {"batch_size": 100, "decisions": 601, "critic_memory": 10_000, "memory": 0}
    assert share_of_one(on_policy, 2) == on_policy | {
        "batch_size": 50,
        "decisions": 301,
        "critic_memory": 5000,
    }
    with pytest.raises(UserError, match="begun with num_collectors=2 num_learners=2"):
        check_places([{}, {}], 2, 2, 1)
    learner = DistributedLearner(settings(tmp_path))
    with pytest.raises(UserError, match="no place 2"):
        learner.join(2, MINE)
    assert json.dumps(learner.hail())


def halve(rank, meeting, folder, shared):
    """Two iterations of DPPO with a checkpoint in between, the policy in parts on both ranks (``shared``) or whole on each."""
    torch.set_num_threads(1)
    Ranks(rank, 2, meeting)
    settings = {"decisions": 60, "epochs": 2, "batch_size": 50, "critic_warmup": 0, "actor_lr": 1e-3}
    more = {"hidden": [32], "observation_keys": [STATE, ENV_STATE], "grad_clip": 0.1, "base_kl": 0.1}

    def made():
        learner = dppo(base(), SPEC, 8, **settings, **more)
        if shared:
            learner.shard()
        return learner

    torch.manual_seed(0)
    learner = made()
    learner.reseed(rank)
    torch.manual_seed(0)
    acting = dppo(base(), SPEC, 8, **settings, **more)
    acting.acting_generator.manual_seed(rank)
    loop = Loop(PointMass(8, rank), acting.policy, acting.assemble)
    for iteration in range(2):
        while not learner.ready:
            loop.step()
            over, rows, steps = acting.hand_over()
            learner.take_over(over, rows, steps)
        learner.update()
        while learner.left:
            learner.update()
        load_weights(acting, {k: v.clone() for k, v in weights(learner).items()})
        if not iteration:
            learner.save(Path(folder) / f"{shared}-{rank}")
            torch.manual_seed(1)
            learner = made()
            learner.load(Path(folder) / f"{shared}-{rank}")
    parts = [p.to_local() if shared else p for p in learner.actor.network.parameters()]
    moments = [s["exp_avg"] for s in learner.actor_optimizer.state.values()]
    held = sum((m.to_local() if shared else m).numel() for m in moments)
    seen = {k: v.numpy().copy() for k, v in weights(learner).items()}
    return {"weights": seen, "parts": sum(p.numel() for p in parts), "moments": held}


def test_a_policy_in_parts_learns_as_a_whole_one_and_goes_on_from_its_checkpoint(tmp_path):
    apart, whole = in_two(halve, str(tmp_path), True), in_two(halve, str(tmp_path), False)
    total = whole[0]["parts"]
    assert all(each["parts"] == each["moments"] == total for each in whole)
    assert sum(each["parts"] for each in apart) == sum(each["moments"] for each in apart) == total
    assert max(each["parts"] for each in apart) < 0.6 * total, "each holds about half"
    start = weights(dppo(base(), SPEC, 8, hidden=[32], observation_keys=[STATE]))
    for name, value in whole[0]["weights"].items():
        moved = abs(value - start[name].numpy()).max()
        for each in apart:
            assert abs(each["weights"][name] - value).max() < 1e-5 + 1e-3 * moved, name
        assert (apart[0]["weights"][name] == apart[1]["weights"][name]).all()
    saved = [load_file(tmp_path / f"{shared}-0" / "algorithm.safetensors") for shared in (True, False)]
    assert {k: v.shape for k, v in saved[0].items()} == {k: v.shape for k, v in saved[1].items()}


def test_a_compiled_policy_is_not_divided():
    learner = dppo(base(), SPEC, 8, hidden=[32], observation_keys=[STATE], compile=True)
    with pytest.raises(UserError, match="algorithm.compile=true"):
        learner.shard()
