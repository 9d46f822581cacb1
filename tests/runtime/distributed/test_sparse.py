"""Sparse weight synchronisation: bit-equal whatever changed, small when little did, and nothing half-applied."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_rl.errors import UserError
from vla_rl.runtime.distributed import sparse
from vla_rl.runtime.distributed.history import Followed, Published
from vla_rl.runtime.distributed.sparse import NOTHING, CorruptDelta, Delta, StaleWeights, apply, difference


def model(seed=0, dtype=torch.bfloat16):
    draw = torch.Generator().manual_seed(seed)
    return {
        "a.weight": torch.randn(300, 40, generator=draw).to(dtype),
        "b": torch.randn(7, generator=draw),
        "steps": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "mask": torch.tensor([True, False, True]),
    }


def moved(weights, share, seed=1):
    draw = torch.Generator().manual_seed(seed)
    out = {}
    for name, tensor in weights.items():
        here = torch.rand(tensor.shape, generator=draw) < share
        fresh = torch.randn(tensor.shape, generator=draw).to(tensor.dtype)
        out[name] = torch.where(here, fresh, tensor)
    return out


def equal(a, b):
    return all(
        a[k].dtype == b[k].dtype and a[k].view(-1).view(torch.uint8).equal(b[k].view(-1).view(torch.uint8))
        for k in b
    )


@given(st.floats(0, 1), st.integers(0, 99), st.sampled_from([torch.bfloat16, torch.float32, torch.float16]))
@settings(max_examples=40, deadline=None)
def test_any_change_arrives_bit_for_bit(share, seed, dtype):
    before = model(seed, dtype)
    after = moved(before, share, seed + 1)
    delta = Delta.unpack(difference(before, after, 4, 5).pack())
    assert apply(before, delta, 4) == 5 and equal(before, after)


def test_values_that_do_not_compare_equal_to_themselves_arrive_too():
    before = {"w": torch.zeros(6)}
    after = {"w": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45, 0.0, -1.0])}
    apply(before, difference(before, after, 0, 1), 0)
    assert equal(before, after)


def test_a_snapshot_needs_nothing_of_the_receiver():
    after, here = model(1), model(2)
    apply(here, difference(None, after, NOTHING, 9), NOTHING)
    assert equal(here, after)


def test_few_changes_are_few_bytes():
    before = {"w": torch.randn(500_000, generator=torch.Generator().manual_seed(0)).bfloat16()}
    after = {"w": before["w"].clone()}
    pick = torch.randperm(500_000, generator=torch.Generator().manual_seed(1))[:5000]
    whole = after["w"].view(torch.int16)
    whole[pick] += 1  # the last bit, as a small step of an optimiser
    assert difference(before, after, 0, 1).size < 1_000_000 / 90
    assert difference(before, before, 0, 1).size < 100


def test_many_tensors_go_in_buckets(monkeypatch):
    monkeypatch.setattr(sparse, "BUCKET", 4000)
    before = {f"layer{i}": torch.randn(50, 10) for i in range(9)}
    after = moved(before, 0.2)
    delta = difference(before, after, 0, 1)
    assert len(delta.buckets) == 5
    assert apply(before, delta, 0) == 1 and equal(before, after)


@given(st.integers(0, 10_000), st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_a_flipped_bit_is_noticed_and_nothing_is_changed(place, bit):
    before = model()
    after = moved(before, 0.1)
    message = bytearray(difference(before, after, 0, 1).pack())
    message[place % len(message)] ^= 1 << bit
    kept = {k: v.clone() for k, v in before.items()}
    with pytest.raises(CorruptDelta):
        apply(before, Delta.unpack(bytes(message)), 0)
    assert equal(before, kept)


def test_a_message_cut_short_is_noticed():
    message = difference(model(), moved(model(), 0.1), 0, 1).pack()
    for length in (0, 3, 40, len(message) - 1):
        with pytest.raises(CorruptDelta):
            Delta.unpack(message[:length])


def test_other_models_and_other_versions_are_refused():
    before, after = model(), moved(model(), 0.1)
    delta = difference(before, after, 3, 4)
    with pytest.raises(StaleWeights, match="from version 3, and here is 2"):
        apply(before, delta, 2)
    with pytest.raises(UserError, match="another model"):
        apply({"other": torch.zeros(3)}, delta, 3)
    with pytest.raises(UserError, match="two different models"):
        difference({"other": torch.zeros(3)}, after, 0, 1)


def test_followers_catch_up_from_wherever_they_are():
    published = Published(keep=3)
    versions = [model()]
    for step in range(6):
        versions.append(moved(versions[-1], 0.01, step))

    def ask(version):
        return [delta.pack() for delta in published.since(version)]

    early, late = Followed(model(5), ask), Followed(model(6), ask)
    published.publish(versions[0])
    assert early.catch_up() and not early.catch_up() and equal(early.weights, versions[0])
    for weights in versions[1:3]:
        published.publish(weights)
    assert len(published.since(0)) == 2 and early.catch_up() and equal(early.weights, versions[2])
    for weights in versions[3:]:
        published.publish(weights)
    assert [d.base for d in published.since(2)] == [NOTHING], "too far behind for the changes that are kept"
    assert early.catch_up() and late.catch_up()
    assert equal(early.weights, versions[-1]) and equal(late.weights, versions[-1]) and late.version == 6
    running = {k: v.clone() for k, v in model(9).items()}
    late.load_into(running)
    assert equal(running, versions[-1])


def test_a_damaged_transfer_is_asked_for_again():
    published = Published()
    published.publish(model())
    damage = [2]

    def ask(version):
        messages = [bytearray(delta.pack()) for delta in published.since(version)]
        if damage[0]:
            damage[0] -= 1
            messages[0][-5] ^= 255
        return [bytes(m) for m in messages]

    follower = Followed(model(3), ask)
    assert follower.catch_up() and follower.refetched == 2 and equal(follower.weights, model())
    damage[0] = 9
    published.publish(moved(model(), 0.1))
    with pytest.raises(CorruptDelta):
        follower.catch_up()
    assert equal(follower.weights, model())


@pytest.mark.parametrize("dtype, times", [(torch.bfloat16, 15), (torch.float32, 4)])
def test_a_step_of_one_length_for_all_weights_is_few_bytes(dtype, times):
    """As Adam makes it: small weights change in several of their last bits, large ones do not; both sides know which is which."""
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(400_000, generator=draw) * 0.03
    step = 1e-5 * torch.randn(400_000, generator=draw).sign()
    before, after = {"w": weights.to(dtype)}, {"w": (weights + step).to(dtype)}
    delta = difference(before, after, 0, 1)
    assert delta.size * times < before["w"].nbytes
    assert apply(before, delta, 0) == 1 and equal(before, after)
