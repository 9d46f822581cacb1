"""Nothing that is not a message is taken for one."""

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from vla_rl.serving.protocol import ProtocolError, pack, pack_state, unpack, unpack_state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (1, 3, 4, 5)])
def test_arrays_arrive_as_they_were_sent(dtype, shape):
    array = (torch.rand(shape) * 100).to(dtype)
    again = unpack(pack({"x": {"y": array}}))["x"]["y"]
    assert again.dtype == dtype and again.shape == array.shape and torch.equal(again, array)


def test_states_arrive_as_they_were_sent():
    like = TensorDict(
        {"history": TensorDict({"a": torch.zeros(1, 2)}, [1]), "seen": torch.zeros(1, dtype=torch.int64)}, [1]
    )
    state = TensorDict({"history": TensorDict({"a": torch.rand(3, 2)}, [3]), "seen": torch.arange(3)}, [3])
    again = unpack_state(unpack(pack({"state": pack_state(state)}))["state"], like)
    assert (again == state).all()
    empty = unpack_state(pack_state(TensorDict({}, [4])), TensorDict({}, [1]))
    assert empty.batch_size[0] == 4
    with pytest.raises(ProtocolError, match="leaves are history/a, seen"):
        unpack_state(pack_state(TensorDict({}, [4])), like)


def array(dtype="float32", shape=(2,), data=b"\0" * 8):
    return {"dtype": dtype, "shape": list(shape), "data": data}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (array(dtype="object"), "dtype of"),
        (array(dtype="<U4"), "dtype of"),
        (array(shape=(3,)), "8 bytes are no float32"),
        (array(shape=(-2,)), "is no shape"),
        (array(shape=(2**40, 2**40)), "bytes are no float32"),
        (array(shape=(1,) * 7), "is no shape"),
        (array(shape=(True, 2)), "is no shape"),
        (array(data="text"), "and bytes"),
        (array(data=np.array([1, np.nan], np.float32).tobytes()), "not finite"),
        (b"loose", "bytes outside"),
        ({"a": {"a": {"a": {"a": {"a": 1}}}}}, "too deeply"),
        ("x" * 3000, "no msgpack"),
        ([0] * 1000, "no msgpack"),
        (msgpack.ExtType(1, b"x"), "no msgpack"),
        (msgpack.Timestamp(1, 1), "no msgpack"),
    ],
)
def test_what_is_refused(value, words):
    with pytest.raises(ProtocolError, match=words):
        unpack(msgpack.packb({"x": value}))


def test_other_things_are_no_messages():
    for raw in ("text", b"", b"\xc1", msgpack.packb([1]), msgpack.packb({1: 2})):
        with pytest.raises(ProtocolError):
            unpack(raw)


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200))
def test_noise_never_gets_further_than_a_protocol_error(raw):
    try:
        assert isinstance(unpack(raw), dict)
    except ProtocolError:
        pass
