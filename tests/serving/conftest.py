import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "policies"))

import tiny  # noqa: E402

from vla_rl.policies.lerobot import LeRobotPolicy  # noqa: E402
from vla_rl.serving.server import PolicyServer, PolicyService  # noqa: E402

TOKEN = "a-token-of-this-test"


@pytest.fixture(scope="session")
def vla(tmp_path_factory):
    """A tiny SmolVLA."""
    return tiny.tiny_vla(tmp_path_factory.mktemp("served") / "nano")


@pytest.fixture(scope="session")
def policy(vla):
    return LeRobotPolicy(vla)


@pytest.fixture
def service(policy):
    service = PolicyService(policy)
    yield service
    service.close()


@pytest.fixture
def server(policy, monkeypatch):
    monkeypatch.setenv("VLA_RL_TOKEN", TOKEN)
    server = PolicyServer(PolicyService(policy, window=0.2), TOKEN)
    server.start()
    yield server
    server.close()
