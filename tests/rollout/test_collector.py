"""Frames, seeds, laziness and closing frames of the collector."""

import pytest
import torch
from reach import CAMERA, Reach, Rewound, Walk

from vla_rl.data.replay import ReplayBuffer
from vla_rl.errors import NonFiniteError
from vla_rl.keys import STATE
from vla_rl.policies.base import PolicySpec
from vla_rl.policies.open_loop import OpenLoop
from vla_rl.rollout.collector import Collector
from vla_rl.rollout.evaluate import evaluate


class ChunkWalk(Walk):
    """Looks, and gives chunks of four equal actions."""

    def __init__(self, speed=0.05):
        super().__init__(speed)
        self.spec = PolicySpec(2, 4, self.spec.state_keys, (CAMERA,))

    def needs_images(self, state):
        return torch.ones(state.batch_size[0], dtype=torch.bool)

    def act(self, observation, state, *, deterministic=False):
        assert (
            observation[CAMERA].flatten(1).float().sum(1) > 0
        ).all()  # only rows that were looked at arrive
        output, state = super().act(observation, state)
        chunk = output["action"].clamp(-0.1, 0.1)[:, None].repeat(1, 4, 1)
        return output.set("action", chunk), state


def gather(env, policy, steps):
    rows: list[list] = [[] for _ in range(env.num_envs)]

    def sink(frames, index):
        for i, row in enumerate(index.tolist()):
            rows[row].append(frames[i])

    collector = Collector(env, policy, lambda n, _: 100 + n, sink=sink)
    collector.begin()
    episodes = [e for _ in range(steps) for e in collector.step()]
    return collector, rows, episodes


def test_stored_action_is_the_executed_one():
    _, rows, _ = gather(Reach(3), Walk(speed=0.3), 20)
    actions = torch.stack([f["action"] for row in rows for f in row])
    assert (actions.abs() <= 0.1 + 1e-6).all()  # Walk asks for more: what the environment got is stored
    for row in rows:
        for now, after in zip(row, row[1:], strict=False):
            if not now["final"]:
                moved = after["observation"][STATE] - now["observation"][STATE]
                assert torch.allclose(moved, now["action"], atol=1e-6)


def test_every_episode_is_closed_once_and_truncation_keeps_its_bootstrap():
    _, rows, episodes = gather(Reach(4, steps=6), OpenLoop(ChunkWalk(), 4), 30)
    assert any(not e.success for e in episodes)
    for row in rows:
        for now, after in zip(row, row[1:], strict=False):
            done = bool(now["terminated"] | now["truncated"])
            assert bool(after["final"]) == done
            if bool(now["truncated"]):  # what the base would do next, not zeros
                assert after["base_action"].abs().sum() > 0


def test_base_next_is_the_action_the_base_then_offers():
    _, rows, _ = gather(Reach(2), OpenLoop(ChunkWalk(), 4), 16)
    for row in rows:
        for frame in row:
            if not frame["final"]:
                assert torch.allclose(frame["base_action"][0].clamp(-0.1, 0.1), frame["action"])


def test_cameras_are_rendered_once_per_chunk():
    env = Reach(4)
    collector, _, episodes = gather(env, OpenLoop(ChunkWalk(), 4), 24)
    assert env.looked <= 4 * 24 / 4 + 2 * (len(episodes) + 4)
    assert collector.looks == env.looked


def test_cut_closes_what_is_in_flight():
    collector, rows, _ = gather(Reach(3), OpenLoop(ChunkWalk(), 4), 3)
    collector.cut()
    assert all(bool(row[-1]["final"]) for row in rows)
    collector.begin()
    assert (collector.length == 0).all()


def test_non_finite_action_stops():
    class Broken(Walk):
        def act(self, observation, state, *, deterministic=False):
            output, state = super().act(observation, state)
            return output.set("action", output["action"] * float("nan")), state

    collector = Collector(Reach(2), Broken(), lambda n, _: n)
    collector.begin()
    with pytest.raises(NonFiniteError, match="not finite"):
        collector.step()


def test_evaluation_does_not_depend_on_the_number_of_environments():
    results = [evaluate(Reach(n, steps=12), Walk(), 20, 5) for n in (1, 3, 7)]
    wins = [{e.seed: e.success for e in r.episodes} for r in results]
    assert wins[0] == wins[1] == wins[2] and set(wins[0]) == set(range(5, 25))
    assert 0 < sum(wins[0].values()) < 20


@pytest.mark.parametrize("count", [1, 3, 7, 30])
def test_rows_that_nobody_counts_any_more_are_neither_looked_at_nor_asked_about(count):
    class Counted(ChunkWalk):
        asked = 0

        def act(self, observation, state, *, deterministic=False):
            self.asked += len(observation[STATE])
            return super().act(observation, state)

    env, policy = Reach(count, steps=12), Counted()
    found = evaluate(env, OpenLoop(policy, 4), 20, 5)
    assert sorted(e.seed for e in found.episodes) == list(range(5, 25))
    needed = sum(-(-e.steps // 4) for e in found.episodes)
    assert env.looked == policy.asked == needed


def test_undone_steps_are_told_and_the_policy_plans_anew():
    env, seen = Rewound(at=6, count=4), []
    collector = Collector(
        env, OpenLoop(ChunkWalk(), 4), lambda n, _: 3, sink=lambda frames, rows: seen.append(frames)
    )
    collector.begin()
    looks = []
    for _ in range(8):
        before = collector.looks
        collector.step()
        looks.append(collector.looks - before)
    assert [int(frames["forget"]) for frames in seen if "forget" in frames.keys()] == [4]
    assert "forget" in seen[5].keys() and collector.length[0] == 4
    assert torch.equal(seen[6]["observation", STATE], seen[2]["observation", STATE])
    assert looks == [1, 0, 0, 0, 1, 0, 1, 0]  # after the sixth step, in the middle of a chunk
    buffer = ReplayBuffer(100, 1)
    for frames in seen:
        buffer.append(frames, torch.zeros(1, dtype=torch.long))
        if "forget" in frames.keys():
            buffer.forget(torch.zeros(1, dtype=torch.long), frames["forget"])
    assert buffer.starts().tolist() == [0, 1, 6]
