"""Demonstrations as frames: the base's actions are those it would have offered, episode by episode."""

from pathlib import Path

import pytest
import torch
from reach import CAMERA, Reach, Walk
from tensordict import TensorDict

from vla_rl.data.dataset import Episode, load_episodes
from vla_rl.data.demonstrations import demonstration_frames
from vla_rl.data.record import record
from vla_rl.data.replay import ReplayBuffer
from vla_rl.errors import UserError
from vla_rl.keys import ACTION, ENV_STATE, STATE
from vla_rl.policies.base import PolicySpec

HORIZON = 4


class ChunkedLooker:
    """An open-loop base of horizon 4 that reads the image; its chunk tells when and from what it was made.

    Action = (mean red of the image at the query + 1000 * position in the chunk, candidate number).
    """

    def __init__(self, candidates: int = 1) -> None:
        self.spec = PolicySpec(action_dim=2, image_keys=(CAMERA,))
        self.candidates = candidates
        self.queries = 0

    def initial_state(self, batch_size: int) -> TensorDict:
        zeros = torch.zeros(batch_size)
        return TensorDict({"age": torch.zeros(batch_size, dtype=torch.int64), "seen": zeros}, [batch_size])

    def needs_images(self, state):
        return state["age"] % HORIZON == 0

    def act(self, observation, state, *, deterministic=False):
        asked = self.needs_images(state)
        images = observation[CAMERA]
        assert (images[~asked] == 0).all(), "rows that were not asked for must hold zeros"
        assert (images[asked].flatten(1).sum(1) > 0).all()
        self.queries += int(asked.sum())
        seen = torch.where(asked, images[:, 0].float().mean((1, 2)), state["seen"])
        first = seen + 1000.0 * (state["age"] % HORIZON)
        n = self.candidates
        candidates = torch.stack([first[:, None].expand(-1, n), torch.arange(n).expand(len(seen), n)], dim=-1)
        size = [len(seen)]
        output = TensorDict({"action": candidates[:, 0], "base_candidates": candidates}, size)
        return output, TensorDict({"age": state["age"] + 1, "seen": seen}, size)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("demonstrations") / "demos"
    summary = record(Reach(4), Walk(0.05), 9, out)
    assert 0 < summary["successes"] < 9
    return out


def episodes_of(frames: TensorDict) -> list[TensorDict]:
    ends = frames["final"].nonzero().flatten().tolist()
    return [frames[a + 1 : b + 1] for a, b in zip([-1, *ends[:-1]], ends, strict=True)]


def test_frames_are_the_recording(recorded: Path) -> None:
    frames, rows = demonstration_frames(recorded, ChunkedLooker(), Reach(1).env_spec)
    assert (rows == 0).all() and len(rows) == len(frames) and isinstance(frames, TensorDict)
    parts = episodes_of(frames)
    episodes = load_episodes(recorded)
    assert len(parts) == 9
    for part, episode in zip(parts, episodes, strict=True):
        length = episode.length
        assert len(part) == length + 1
        for key in (STATE, ENV_STATE):
            assert torch.equal(part["observation", key][:-1], episode.data[key])
            assert torch.equal(part["observation", key][-1], episode.final[key])
        assert torch.equal(part["action"][:-1], episode.data[ACTION]) and (part["action"][-1] == 0).all()
        assert torch.equal(part["reward"][:-1], episode.data["next.reward"]) and part["reward"][-1] == 0
        assert not part["intervention"].any()
        ended = torch.zeros(length + 1, dtype=torch.bool)
        ended[-2] = True
        nothing = torch.zeros_like(ended)
        assert torch.equal(part["terminated"], ended if episode.success else nothing)
        assert torch.equal(part["truncated"], nothing if episode.success else ended)
        assert part["final"].sum() == 1 and part["final"][-1]


@pytest.mark.parametrize(("candidates", "batch_size"), [(1, 32), (3, 2)])
def test_base_is_begun_anew_at_every_episode_and_queried_at_its_boundaries(
    recorded: Path, candidates: int, batch_size: int
) -> None:
    """Regression: ResFiT (its issue 5) let a base's chunk run on from one demonstration into the next."""
    base = ChunkedLooker(candidates)
    frames, _ = demonstration_frames(recorded, base, Reach(1).env_spec, batch_size=batch_size)
    episodes = load_episodes(recorded)
    queries = 0
    for part, episode in zip(episodes_of(frames), episodes, strict=True):
        images = torch.cat([episode.data[CAMERA], episode.final[CAMERA][None]])
        steps = episode.length + (not episode.success)  # what follows a truncation is needed, a success not
        assert part["base_action"].shape == (episode.length + 1, candidates, 2)
        for t in range(steps):
            seen = images[t - t % HORIZON, 0].float().mean()
            for n in range(candidates):
                expected = torch.stack([seen + 1000.0 * (t % HORIZON), torch.tensor(float(n))])
                assert torch.allclose(part["base_action"][t, n], expected)
        if episode.success:
            assert (part["base_action"][-1] == 0).all()
        queries += -(-steps // HORIZON)
    assert base.queries == queries


def test_without_a_base_the_demonstration_is_its_own(recorded: Path) -> None:
    frames, _ = demonstration_frames(recorded, None, Reach(1).env_spec, image_keys=[CAMERA])
    assert torch.equal(frames["base_action"][:, 0], frames["action"])
    assert frames["observation", CAMERA].dtype == torch.uint8


def test_they_go_into_the_replay_buffer(recorded: Path) -> None:
    frames, rows = demonstration_frames(recorded, ChunkedLooker(), Reach(1).env_spec)
    replay = ReplayBuffer(len(frames) + 1)
    replay.append(frames, rows)
    assert len(replay.starts()) == int((~frames["final"]).sum())
    batch = replay.sample(256, n_step=3, gamma=0.9, generator=torch.Generator().manual_seed(0))
    assert (batch["discount"] == 0).any() and (batch["discount"] > 0).any()


def test_the_same_base_actions_as_in_the_environment(tmp_path: Path) -> None:
    """A base recorded by itself offers, along its own demonstrations, exactly the actions it executed."""
    from vla_rl.policies.open_loop import OpenLoop

    class Chunks:
        """Chunks of 5 towards the goal."""

        spec = PolicySpec(action_dim=2, chunk_length=5, state_keys=(STATE, ENV_STATE))

        def initial_state(self, batch_size):
            return TensorDict({}, [batch_size])

        def needs_images(self, state):
            return torch.zeros(state.batch_size[0], dtype=torch.bool)

        def act(self, observation, state, *, deterministic=False):
            step = ((observation[ENV_STATE] - observation[STATE]) / 5).clamp(-0.08, 0.08)
            return TensorDict({"action": step[:, None].expand(-1, 5, -1)}, [len(step)]), state

    base = OpenLoop(Chunks(), horizon=5)
    record(Reach(3), base, 8, tmp_path / "x", cameras=())
    record(Reach(2), Chunks(), 8, tmp_path / "y", cameras=(), policy_id="a chunked policy")
    frames, _ = demonstration_frames(tmp_path / "x", base, Reach(1).env_spec)
    real = ~frames["final"]
    assert torch.equal(frames["base_action"][real][:, 0], frames["action"][real])
    chunked, _ = demonstration_frames(tmp_path / "y", base, Reach(1).env_spec)
    assert torch.equal(chunked["action"], frames["action"])


def test_a_data_set_without_final_observations_loses_one_step(recorded: Path) -> None:
    episodes = [Episode(e.index, e.task, e.data, {}, e.seed) for e in load_episodes(recorded)]
    frames, _ = demonstration_frames(episodes, ChunkedLooker(), Reach(1).env_spec)
    for part, episode in zip(episodes_of(frames), episodes, strict=True):
        assert len(part) == episode.length + (1 if episode.success else 0)
        assert part["terminated"].any() == episode.success and part["truncated"].any() != episode.success
        assert torch.equal(part["observation", STATE][-1], episode.data[STATE][-1])


def test_bad_data_sets_are_named(recorded: Path, tmp_path: Path) -> None:
    import dataclasses

    spec = Reach(1).env_spec
    episodes = load_episodes(recorded)
    with pytest.raises(UserError, match="recorded at 20 Hz, Reach runs at 50.0 Hz"):
        demonstration_frames(recorded, None, dataclasses.replace(spec, rate_hz=50.0))
    with pytest.raises(UserError, match=r"observation.state of .* has shape \(2,\), Reach has \(3,\)"):
        demonstration_frames(recorded, None, dataclasses.replace(spec, state_dim=3))
    bare = [dataclasses.replace(e, data={k: e.data[k] for k in (STATE, ENV_STATE, ACTION)}) for e in episodes]
    with pytest.raises(UserError, match="no next.reward and next.done"):
        demonstration_frames(bare, None, spec)
    frames, _ = demonstration_frames(bare, None, spec, assume_success=True)
    assert frames["terminated"].sum() == 9 and frames["reward"].sum() == 9
    with pytest.raises(UserError, match=f"no key {CAMERA}"):
        demonstration_frames(bare, ChunkedLooker(), spec)
    with pytest.raises(UserError, match="is not a LeRobotDataset"):
        demonstration_frames(tmp_path, None, spec)
