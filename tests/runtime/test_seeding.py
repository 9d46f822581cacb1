import json
import random

import numpy as np
import pytest
import torch

from vla_rl.errors import UserError
from vla_rl.runtime.seeding import rng_state, seed_everything, set_rng_state


@pytest.fixture(autouse=True)
def leave_the_generators_alone():
    before = rng_state()
    yield
    set_rng_state(before)


def draw():
    return (
        [random.random() for _ in range(3)],
        random.gauss(0, 1),
        np.random.rand(3).tolist(),
        np.random.randn(),  # odd number of normals: numpy keeps the second one
        torch.randn(3).tolist(),
    )


def test_the_same_seed_draws_the_same():
    seed_everything(7)
    first = draw()
    seed_everything(7)
    assert draw() == first
    seed_everything(8)
    assert draw() != first
    seed_everything(2**40)


def test_the_state_goes_through_json():
    seed_everything(7)
    draw()
    text = json.dumps(rng_state())
    expected = [draw() for _ in range(3)]
    seed_everything(99)
    set_rng_state(json.loads(text))
    assert [draw() for _ in range(3)] == expected


@pytest.mark.parametrize("key", ["python", "numpy", "torch"])
@pytest.mark.parametrize("value", [None, [], "AAAA", [3, [1, 2], None]])
def test_a_damaged_state_is_refused_and_changes_nothing(key, value):
    before = rng_state()
    with pytest.raises(UserError, match="random generator state is damaged"):
        set_rng_state(before | {key: value})
    state = dict(before)
    del state[key]
    with pytest.raises(UserError):
        set_rng_state(state)
    assert rng_state() == before
