"""A critic behind a websocket answers as it does here, and refuses what does not fit."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "critic"))

from films import TASKS, film, untrained  # noqa: E402

from vla_rl.critic.model import Critic  # noqa: E402
from vla_rl.critic.remote import RemoteCritic  # noqa: E402
from vla_rl.errors import UserError  # noqa: E402
from vla_rl.policies.remote import Remote  # noqa: E402
from vla_rl.serving.critic import CriticService  # noqa: E402
from vla_rl.serving.server import PolicyServer  # noqa: E402


@pytest.fixture(scope="module")
def critic(tmp_path_factory):
    return Critic.load(untrained(tmp_path_factory.mktemp("critic")))


@pytest.fixture
def remote(critic, monkeypatch):
    monkeypatch.setenv("VLA_RL_TOKEN", "of-this-test")
    server = PolicyServer(CriticService(critic), "of-this-test")
    server.start()
    client = RemoteCritic(f"ws://127.0.0.1:{server.port}")
    yield client
    client.close()
    server.close()


def test_it_answers_as_it_does_here(critic, remote):
    pictures, shown = film(1).pictures, film(2)
    tasks = [TASKS[0], TASKS[1], "another thing"]
    with torch.no_grad():
        seen = critic.look(pictures[:6])
    for reference in (None, shown):
        here, there = (None if reference is None else each.refer(reference) for each in (critic, remote))
        one = critic.progress(seen[:3], seen[3:], tasks, here)
        other = remote.progress(remote.look(pictures[:3]), pictures[3:6], tasks, there)
        for a, b in zip(one, other, strict=True):
            assert torch.allclose(a, b, atol=1e-5)
        assert torch.allclose(
            critic.done(seen[:3], tasks, here), remote.done(pictures[:3], tasks, there), atol=1e-5
        )
    assert remote.notes["tasks"] == sorted(TASKS)


def test_what_does_not_fit_is_refused(critic, remote):
    pictures = film(1).pictures
    with pytest.raises(UserError, match="pictures of 32x32, the critic was trained on 64x64"):
        remote.look(pictures[..., ::2, ::2])
    with pytest.raises(UserError, match="refuses: first must be uint8"):
        remote.progress(pictures[:1].float(), pictures[1:2], [TASKS[0]])
    with pytest.raises(UserError, match="refuses: a task is a sentence"):
        remote.done(pictures[:1], ["x" * 300])
    with pytest.raises(UserError, match="refuses: pictures must be uint8"):
        remote.done(pictures[:2], [TASKS[0]])
    with pytest.raises(UserError, match="answers, but not as a policy server"):
        Remote(remote.address)
    assert remote.done(pictures[:1], [TASKS[0]]).shape == (1,), "it still answers"
