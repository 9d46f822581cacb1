"""A policy behind a server is the policy: same actions, and a server that goes comes back without anybody noticing."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import tiny
import torch
from tiny import observe

from vla_rl.checks.policy import check_policy
from vla_rl.config import compose
from vla_rl.errors import UserError
from vla_rl.policies.lerobot import LeRobotPolicy
from vla_rl.policies.load import load_base
from vla_rl.policies.remote import Remote
from vla_rl.serving.server import PolicyServer, PolicyService


@pytest.fixture(scope="module")
def policy(vla_folder):
    return LeRobotPolicy(vla_folder)


@pytest.fixture(scope="module")
def address(policy):
    os.environ["VLA_RL_TOKEN"] = "secret"
    server = PolicyServer(PolicyService(policy), "secret")
    server.start()
    yield f"ws://127.0.0.1:{server.port}"
    server.close()
    del os.environ["VLA_RL_TOKEN"]


def test_it_conforms(address):
    check_policy(Remote(address), tiny.env_spec(), steps=2)


def test_the_same_noise_gives_the_same_chunk(address, policy):
    remote = Remote(address)
    assert remote.spec == policy.spec and remote.noise_shape == policy.noise_shape
    noise = torch.randn(3, *policy.noise_shape)
    here, _ = policy.act_from_noise(observe(3), policy.initial_state(3), noise)
    there, _ = remote.act_from_noise(observe(3), remote.initial_state(3), noise)
    assert torch.equal(here["action"], there["action"])


def test_dsrl_trains_over_it(address):
    """Noise steering needs nothing of the base but that it takes a noise."""
    from vla_rl.algorithms.factory import dsrl

    overrides = ["policy=remote", f"policy.address={address}", "policy.token_file=null", "policy.horizon=2"]
    base = load_base(compose("eval", overrides).policy)
    settings = {
        "warmup": 2,
        "first_updates": 2,
        "hidden": [8],
        "batch_size": 4,
        "observation_keys": ["observation.state"],
    }
    algorithm = dsrl(base, tiny.env_spec(), 2, **settings)
    assert algorithm.chooser.shape == base.base.noise_shape
    output, _ = algorithm.policy.act(observe(2), algorithm.policy.initial_state(2))
    assert torch.isfinite(output["action"]).all()


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("refuses the token", {"token": "wrong"}),
        ("no token", {"token": ""}),
        ("does not answer", {"address": "ws://127.0.0.1:9"}),
        ("is no policy server's address", {"address": "http://127.0.0.1:9"}),
    ],
)
def test_mistakes_are_named(address, monkeypatch, words, change):
    monkeypatch.setenv("VLA_RL_TOKEN", change.get("token", "secret"))
    with pytest.raises(UserError, match=words):
        Remote(change.get("address", address))


def test_what_it_lacks_is_named(address):
    remote = Remote(address)
    with pytest.raises(
        UserError, match=r"needs observation.images.base; the observation has observation.state"
    ):
        remote.act({"observation.state": torch.zeros(1, 5)}, remote.initial_state(1))
    seen = observe(1) | {"observation.state": torch.full((1, 5), float("nan"))}
    with pytest.raises(UserError, match="not finite"):
        remote.act(seen, remote.initial_state(1))


def start(folder, port, log):
    command = [
        sys.executable,
        "-m",
        "vla_rl.cli",
        "serve",
        f"policy.path={folder}",
        f"port={port}",
        "threads=1",
    ]
    process = subprocess.Popen(
        command,
        stdout=open(log, "a"),
        stderr=subprocess.STDOUT,
        env=os.environ | {"VLA_RL_TOKEN": "secret"},
        # A shell's background job ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    until = time.monotonic() + 100
    while "serving" not in log.read_text() and time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    return process


def test_a_server_that_is_killed_and_started_again(vla_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("VLA_RL_TOKEN", "secret")
    first = start(vla_folder, 0, tmp_path / "first.log")
    port = int((tmp_path / "first.log").read_text().split("127.0.0.1:")[1].split(";")[0])
    remote = Remote(f"ws://127.0.0.1:{port}", patience=90)
    noise = torch.randn(1, *remote.noise_shape)
    before, state = remote.act_from_noise(observe(1), remote.initial_state(1), noise)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = []
    restarter = threading.Thread(
        target=lambda: second.append(start(vla_folder, port, tmp_path / "second.log"))
    )
    restarter.start()
    after, _ = remote.act_from_noise(observe(1), state, noise)  # waits, connects, asks again
    restarter.join()
    assert torch.allclose(before["action"], after["action"], atol=1e-6)
    assert "secret" not in (tmp_path / "second.log").read_text()
    second[0].send_signal(signal.SIGINT)
    assert second[0].wait(60) == 0
    quick = Remote.__new__(Remote)
    quick.__dict__ |= remote.__dict__ | {"patience": 0.5}
    with pytest.raises(UserError, match="does not answer for 0.5 s"):
        quick.act(observe(1), state)
