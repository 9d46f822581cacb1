"""Chunks are executed row by row; nobody's chunk depends on another row's reset."""

import pytest
import torch
from tensordict import TensorDict

from vla_rl.errors import UserError
from vla_rl.policies.base import PolicySpec, reset_rows
from vla_rl.policies.open_loop import OpenLoop


class Counting:
    """Chunk t of a row is state[0] + t / 100, drawn apart per call so that a needless query would show."""

    spec = PolicySpec(
        action_dim=2, chunk_length=5, state_keys=("observation.state",), image_keys=("observation.images.c",)
    )

    def __init__(self):
        self.asked = []

    def initial_state(self, batch_size):
        return TensorDict({"calls": torch.zeros(batch_size, dtype=torch.int64)}, [batch_size])

    def needs_images(self, state):
        return torch.ones(state.batch_size[0], dtype=torch.bool)

    def act(self, observation, state, *, deterministic=False):
        value = observation["observation.state"][:, :1]
        self.asked.append((value.flatten().tolist(), list(observation["task"])))
        chunk = value[:, None] + torch.arange(5)[None, :, None] / 100 + torch.zeros(1, 1, 2)
        chunk[..., 1] = torch.arange(len(value))[:, None]  # which of the N candidates
        return TensorDict({"action": chunk}, [len(value)]), TensorDict(
            {"calls": state["calls"] + 1}, state.batch_size
        )


def observe(values):
    return {
        "observation.state": torch.tensor([[float(v)] for v in values]),
        "observation.images.c": torch.zeros(len(values), 3, 2, 2, dtype=torch.uint8),
        "task": [f"task {i}" for i in range(len(values))],
    }


def test_asks_once_per_chunk_and_only_for_the_rows_that_need_it():
    base = Counting()
    loop = OpenLoop(base, horizon=3)
    state = loop.initial_state(2)
    firsts = []
    for step in range(7):
        output, state = loop.act(observe([10 * step, 10 * step + 1]), state)
        firsts.append(round(output["action"][0, 0].item(), 4))
        assert output["chunk_index"].tolist() == [step % 3] * 2
    assert firsts == [0, 0.01, 0.02, 30, 30.01, 30.02, 60]
    assert len(base.asked) == 3 and state["base", "calls"].tolist() == [3, 3]


def test_reset_of_one_row_leaves_the_chunks_of_the_others():
    base = Counting()
    loop = OpenLoop(base, horizon=4)
    state = loop.act(observe([1, 2, 3]), loop.initial_state(3))[1]
    state = loop.act(observe([9, 9, 9]), state)[1]
    state = reset_rows(loop, state, torch.tensor([False, True, False]))
    assert loop.needs_images(state).tolist() == [False, True, False]
    output, state = loop.act(observe([7, 50, 7]), state)
    torch.testing.assert_close(output["action"][:, 0], torch.tensor([1.02, 50.0, 3.02]))
    assert base.asked[-1] == ([50.0], ["task 1"])
    assert state["base", "calls"].tolist() == [1, 1, 1]
    output, state = loop.act(observe([8, 8, 8]), state)
    torch.testing.assert_close(output["action"][:, 0], torch.tensor([1.03, 50.01, 3.03]))
    assert loop.needs_images(state).tolist() == [True, False, True]


def test_peeking_is_acting_and_forgetting_the_state():
    loop = OpenLoop(Counting(), horizon=2)
    state = loop.initial_state(2)
    for step in range(5):
        kept = state.clone()
        peeked, _ = loop.act(observe([step, step]), state)
        assert all(torch.equal(state[k], kept[k]) for k in ("chunk", "index", ("base", "calls")))
        output, state = loop.act(observe([step, step]), state)
        assert torch.equal(peeked["action"], output["action"])


def test_candidates_come_from_one_call_and_the_first_is_executed():
    base = Counting()
    loop = OpenLoop(base, horizon=2, candidates=3)
    output, state = loop.act(observe([1, 2]), loop.initial_state(2))
    assert len(base.asked) == 1 and base.asked[0][0] == [1, 1, 1, 2, 2, 2]
    assert output["base_candidates"].shape == (2, 3, 2) and state["chunk"].shape == (2, 3, 2, 2)
    assert output["base_candidates"][1, :, 1].tolist() == [3, 4, 5]
    assert torch.equal(output["action"], output["base_candidates"][:, 0])
    assert state["base", "calls"].tolist() == [1, 1]


def test_bad_horizon():
    for horizon in (0, 6):
        with pytest.raises(UserError, match="outside 1..5"):
            OpenLoop(Counting(), horizon)
    with pytest.raises(UserError, match="single actions"):
        OpenLoop(OpenLoop(Counting()))
    with pytest.raises(UserError, match="candidates=0"):
        OpenLoop(Counting(), candidates=0)
