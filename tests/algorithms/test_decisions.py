"""Whole decisions from the collector's frames."""

import torch
from tensordict import TensorDict

from vla_rl.algorithms.decisions import Decisions
from vla_rl.keys import ELAPSED

KEY = "observation.state"


def frames(seen, reward=0.0, terminated=False, final=False, taken=False, forget=None, truncated=False):
    """One row's frame."""
    parts = {
        "observation": TensorDict({KEY: torch.tensor([[float(seen)]])}, batch_size=[1]),
        "reward": torch.tensor([float(reward)]),
        "terminated": torch.tensor([terminated]),
        "truncated": torch.tensor([truncated]),
        "final": torch.tensor([final]),
        "intervention": torch.tensor([taken]),
    }
    if forget is not None:
        parts["forget"] = torch.tensor([forget])
    return TensorDict(parts, batch_size=[1])


def play(store, row, *steps):
    """Steps (decided?, frame) of one row."""
    for decided, frame in steps:
        if decided:
            mark = torch.tensor([[float(decided)]])
            store.decided(torch.tensor([row]), TensorDict({"action": mark, "log_prob": mark}, batch_size=[1]))
        store.observe(frame, torch.tensor([row]))


def taken(store):
    return store.take(lambda seen: seen[KEY].squeeze(-1), gamma=0.9, lam=0.0)


def test_rewards_of_a_chunk_are_summed_and_the_next_observation_is_its_own():
    store = Decisions(2, [KEY])
    play(store, 1, (7, frames(0, 1)), (0, frames(1, 2)), (8, frames(2, 4)), (0, frames(3, 8, True)))
    assert len(store) == 1
    play(store, 1, (0, frames(4, final=True)))
    assert len(store) == 2
    batch = taken(store)
    assert batch["reward"].tolist() == [3, 12] and batch["log_prob"].flatten().tolist() == [7, 8]
    assert batch["observation", KEY].flatten().tolist() == [0, 2]
    assert batch["next_observation", KEY].flatten().tolist() == [2, 4]
    assert batch["terminated"].tolist() == [False, True] and batch["ended"].tolist() == [False, True]
    assert torch.allclose(batch["advantage"], torch.tensor([3 + 0.9 * 2 - 0, 12 - 2.0]))
    assert torch.allclose(batch["return"], batch["advantage"] + batch["value"]) and not len(store)


def test_a_truncated_episode_bootstraps():
    store = Decisions(1, [KEY])
    play(store, 0, (1, frames(5, 0)), (0, frames(9, final=True)), (2, frames(1)), (3, frames(2)))
    batch = taken(store)
    assert torch.allclose(batch["advantage"], torch.tensor([0.9 * 9 - 5, 0.9 * 2 - 1]))


def test_nothing_follows_a_time_limit_that_ends_but_a_cut_for_a_checkpoint_bootstraps():
    store = Decisions(1, [KEY], limit_ends=True)
    play(store, 0, (1, frames(5, 0, truncated=True)), (0, frames(9, final=True)))
    play(store, 0, (2, frames(3, 0)), (0, frames(7, final=True)))
    batch = taken(store)
    assert torch.allclose(batch["advantage"], torch.tensor([0.0 - 5, 0.9 * 7 - 3]))
    assert batch["terminated"].tolist() == [True, False] and batch["ended"].tolist() == [True, True]


def test_where_a_limit_ends_it_is_seen_how_long_an_episode_has_lasted():
    store = Decisions(1, [KEY, ELAPSED], limit_ends=True)
    play(store, 0, (1, frames(0)), (0, frames(1)), (2, frames(2)), (0, frames(3, final=True)))
    play(store, 0, (3, frames(0)), (0, frames(1, final=True)))
    batch = taken(store)
    assert batch["observation", ELAPSED].tolist() == [[0], [2], [0]]
    assert batch["next_observation", ELAPSED].tolist() == [[2], [3], [1]]


def test_what_a_person_did_is_marked():
    store = Decisions(1, [KEY])
    play(store, 0, (1, frames(0)), (0, frames(1, taken=True)), (2, frames(2)), (0, frames(3, final=True)))
    assert taken(store)["own"].tolist() == [False, True]


def test_a_rewound_chunk_is_left_out():
    store = Decisions(1, [KEY], limit_ends=True)
    play(store, 0, (1, frames(0)), (2, frames(1)), (0, frames(2, 5, forget=2)), (3, frames(1)))
    play(store, 0, (0, frames(2, final=True)))
    batch = taken(store)
    assert batch["log_prob"].flatten().tolist() == [1, 3] and batch["reward"].sum() == 0
    assert batch["ended"].tolist() == [True, True]
    assert batch["observation", ELAPSED].flatten().tolist() == [0, 1]  # the limit has gone back with the arm


def test_saved_and_read_back(tmp_path):
    store = Decisions(2, [KEY])
    play(store, 0, (1, frames(0, 1)), (2, frames(1)), (0, frames(2, final=True)))
    store.save(tmp_path)
    again = Decisions(2, [KEY])
    again.load(tmp_path)
    assert len(again) == 2
    first, second = taken(store), taken(again)
    assert all(torch.equal(first[k], second[k]) for k in first.keys(True, True))
    empty = Decisions(2, [KEY])
    empty.save(tmp_path)
    again.load(tmp_path)
    assert not len(again)
