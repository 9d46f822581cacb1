"""The store of hard states: what gets in, what is chosen, what makes room, and that a checkpoint keeps all of it."""

import numpy as np
import pytest
from PIL import Image
from reach import Reach, Savable

from vla_rl.errors import UserError
from vla_rl.rollout.hard_states import HardStates


def played(store, env, steps, row=0, success=False, helped_at=None):
    """One episode of ``steps`` steps to the right."""
    starts = store.begin([row])
    env.reset(seed=list(range(env.num_envs)), options={"start": starts})
    for step in range(steps):
        store.look([step if r == row else 0 for r in range(env.num_envs)])
        if step == helped_at:
            store.took_over(row, step)
        env.position[row, 0] = step  # where it is tells when it was
    store.ended(row, success, steps)
    return starts


def test_the_moment_some_steps_before_a_failure_or_a_take_over_is_kept():
    env = Savable(2)
    store = HardStates(env, every=5, back=10)
    played(store, env, 23)
    assert [int(e.state["position"][0]) for e in store.entries] == [
        9
    ]  # at step 10: newest at least 10 before 23
    played(store, env, 24, row=1, helped_at=17)
    assert [int(e.state["position"][0]) for e in store.entries] == [9, 4] and len(store.entries) == 2
    played(store, env, 24, success=True)
    played(store, env, 8)  # too short to have had such a moment
    assert len(store.entries) == 2


def test_a_rewind_takes_moments_back():
    env = Savable(1)
    store = HardStates(env, every=5, back=5)
    store.begin([0])
    env.reset(seed=[0])
    for step in (5, 10, 15):
        store.look([step])
    store.rewound(0, 8)
    store.ended(0, False, 16)
    assert len(store.entries) == 1 and store._recent[0][-1][0] == 5


def test_episodes_count_for_the_moment_they_began_at_and_help_is_no_success():
    env = Savable(1)
    store = HardStates(env, every=5, back=10)
    played(store, env, 20)
    store.share = 1.0
    assert set(played(store, env, 20, success=True)) == {0}
    played(store, env, 20, success=True, helped_at=3)
    assert (store.entries[0].tries, store.entries[0].wins) == (2, 1)


def test_what_is_neither_certain_nor_hopeless_is_chosen_most_and_outlives_the_rest():
    env = Savable(1)
    store = HardStates(env, capacity=3, every=5, back=10)
    for _ in range(3):
        played(store, env, 20)
    for entry, (tries, wins) in zip(store.entries, [(30, 0), (30, 15), (30, 30)], strict=True):
        entry.tries, entry.wins = tries, wins
    store.share, chosen = 1.0, []
    for _ in range(300):
        store.begin([0])
        chosen.append(store.origin[0].number)
    assert np.bincount(chosen)[1] > 0.7 * 300
    store.share = 0.0
    played(store, env, 20)
    assert [e.number for e in store.entries] == [1, 2, 3]


def test_a_checkpoint_keeps_states_counts_and_the_draw(tmp_path):
    env = Savable(1)
    first = HardStates(env, every=5, back=10, seed=1, folder=tmp_path / "pictures")
    for _ in range(4):
        played(first, env, 20)
    first.share = 0.5
    first.begin([0])
    first.save(tmp_path)
    again = HardStates(env, every=5, back=10, seed=7, folder=tmp_path / "pictures")
    again.load(tmp_path)
    again.share = 0.5
    for _ in range(20):
        ours, theirs = again.begin([0]), first.begin([0])
        assert ours.keys() == theirs.keys()
        for row in ours:
            assert np.array_equal(ours[row]["position"], theirs[row]["position"])
            assert Image.open(ours[row]["picture"]).size == (32, 32)
    (tmp_path / "hard_states.json").write_text("{")
    with pytest.raises(UserError, match="no usable hard states"):
        again.load(tmp_path)


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"Reach cannot begin episodes from saved states"):
        HardStates(Reach(1))
    with pytest.raises(UserError, match=r"schedule.hard_states.back=0"):
        HardStates(Savable(1), back=0)
    with pytest.raises(UserError, match="cannot begin from saved states"):
        Reach(1).save_states([0])
