"""The service answers every message, and what it must not accept it refuses; clients share forward passes."""

import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import observe

from vla_rl.policies.remote import Remote
from vla_rl.serving.protocol import pack, pack_state, unpack


def ask(service, **message):
    return unpack(service.answer(pack(message)))


def act(policy, count=1, **changes):
    message = {
        "observation": observe(count),
        "state": pack_state(policy.initial_state(count)),
        "deterministic": True,
    }
    return {"id": 1, "method": "act"} | message | changes


def test_the_answer_is_the_policys(service, policy):
    noise = torch.randn(2, *policy.noise_shape)
    reply = ask(service, **act(policy, 2, noise=noise))
    there, _ = policy.act_from_noise(observe(2), policy.initial_state(2), noise)
    assert reply["id"] == 1 and torch.equal(reply["action"], there["action"])


def broken(policy):
    good = observe(2)
    state = pack_state(policy.initial_state(2))
    other = {**good, "observation.state": good["observation.state"].double()}
    return [
        ({"observation": {"task": ["x"]}}, "the observation has"),
        ({"observation": other}, "observation.state must be float32"),
        ({"observation": {**good, "observation.images.base": torch.zeros(2, 3, 4, 4)}}, "must be uint8"),
        ({"observation": {**good, "task": ["x"]}}, "must be 2 sentences"),
        ({"observation": good, "state": {"rows": -1, "leaves": {}}}, "leaves are"),
        ({"observation": good, "state": {"rows": 2, "leaves": {"x": torch.zeros(2)}}}, "leaves are"),
        ({"observation": good, "state": state, "deterministic": 1}, "true or false"),
        ({"observation": good, "state": state, "noise": torch.zeros(2, 1, 1)}, "noise must be"),
        ({"observation": good, "state": state, "more": 1}, "act has"),
        ({"state": {"rows": 300, "leaves": {}}}, "300 rows"),
        ({"method": "eval"}, "method must be one of"),
        ({"id": "one"}, "id must be a number"),
    ]


def test_what_does_not_fit_is_refused_by_name(service, policy):
    for changes, words in broken(policy):
        reply = ask(service, **act(policy, 2, **changes))
        assert words in reply["error"] and reply["kind"] == "protocol", (changes.keys(), reply)
    assert "error" not in ask(service, **act(policy))  # and it goes on


def test_another_protocol_is_named_on_both_sides(service):
    reply = ask(service, id=3, method="hello", protocol=99)
    assert reply["id"] == 3 and "protocol 99, the server 1" in reply["error"]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from(["id", "method", "observation", "state", "deterministic", "noise", "protocol", "x"])
NAMES = st.sampled_from(["act", "hello", "needs_images", "__class__", ""])


@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_two_thousand_malformed_messages_none_accepted(service_for_fuzz, data):
    service, good = service_for_fuzz
    kind = data.draw(st.integers(0, 2))
    if kind == 0:
        raw = data.draw(st.binary(max_size=300))
    elif kind == 1:  # the right words with anything behind them
        message = data.draw(st.dictionaries(KEYS, VALUES, max_size=6))
        import msgpack

        raw = msgpack.packb({"id": 1, "method": data.draw(NAMES)} | message, strict_types=False)
    else:  # a good one with bytes cut out or changed in its head
        place = data.draw(st.integers(0, 400))
        raw = good[:place] + data.draw(st.binary(max_size=3)) + good[place + data.draw(st.integers(1, 4)) :]
    reply = unpack(service.answer(raw))
    if "error" not in reply:  # a change that changes nothing of what is asked is a good message
        assert kind == 2 or reply.get("protocol") == 1
    else:
        assert reply["kind"] == "protocol", reply


@pytest.fixture(scope="module")
def service_for_fuzz(policy):
    from vla_rl.serving.server import PolicyService

    service = PolicyService(policy, window=0.0)
    service.batcher.serve = lambda request: (_ for _ in ()).throw(AssertionError("the policy was reached"))
    good = observe(1)
    good["observation.images.base"] = good["observation.images.base"][:, :, :2, :2]
    yield service, pack(act(policy, observation=good, deterministic=None))
    service.close()


def test_clients_that_ask_together_share_a_pass(server, policy):
    noise = torch.randn(3, *policy.noise_shape)
    address, found = f"ws://127.0.0.1:{server.port}", {}
    clients = [Remote(address) for _ in range(3)]

    def one(index):
        client = clients[index]
        found[index] = client.act_from_noise(observe(1), client.initial_state(1), noise[index : index + 1])[0]

    threads = [threading.Thread(target=one, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batcher = server.service.batcher
    assert batcher.requests == 3 and batcher.passes < 3
    for index, output in found.items():
        alone, _ = policy.act_from_noise(observe(1), policy.initial_state(1), noise[index : index + 1])
        assert torch.allclose(output["action"], alone["action"], atol=1e-5)
