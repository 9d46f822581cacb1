"""What is kept of the newest rows, and what a run that goes on with other settings finds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict

from vla_rl.data.ring import Ring
from vla_rl.errors import UserError


def rows(first, count, width=2):
    numbers = torch.arange(first, first + count).float()
    return TensorDict(
        {"observation": {"state": numbers[:, None].expand(count, width)}, "tokens": numbers.long()},
        batch_size=[count],
    )


def kept(ring):
    return ring.rows["tokens"][: len(ring)].tolist()


def filled(capacity, batches):
    ring, first = Ring(capacity), 0
    for count in batches:
        ring.append(rows(first, count))
        first += count
    return ring, first


@given(st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(1, 12))
def test_the_newest_survive_another_capacity(tmp_path_factory, capacity, batches, later):
    ring, total = filled(capacity, batches)
    before = kept(ring)
    assert sorted(before) == list(range(max(0, total - capacity), total))
    folder = tmp_path_factory.mktemp("ring")
    ring.save(folder)
    again = Ring(later)
    again.load(folder)
    assert sorted(kept(again)) == sorted(before)[-later:]
    if later == capacity:
        assert kept(again) == before and again.next == ring.next, "a resumed run draws the same rows"
    again.append(rows(total, 3))
    assert sorted(kept(again)) == [*sorted(before), total, total + 1, total + 2][-later:]


def test_rows_of_another_layout_are_named(tmp_path):
    ring, _ = filled(4, [3])
    ring.save(tmp_path)
    again = Ring(4)
    again.load(tmp_path)
    with pytest.raises(
        UserError, match=r"observation.state of what is kept has shape \(2,\), of what is new \(5,\)"
    ):
        again.append(rows(3, 1, width=5))
    with pytest.raises(UserError, match=r"tokens of what is kept has shape \(\), of what is new None"):
        again.append(rows(3, 1).exclude("tokens"))
    assert kept(again) == [0, 1, 2]
