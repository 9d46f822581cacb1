"""The replay buffer against a plain Python reference, and the defects of the reference codes."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from vla_rl.data.replay import ReplayBuffer
from vla_rl.errors import UserError


def frames(
    stamps: list[int],
    reward: list[float] | None = None,
    terminated: list[bool] | None = None,
    truncated: list[bool] | None = None,
    final: list[bool] | None = None,
    image: bool = False,
) -> TensorDict:
    """Frames whose every content tells their stamp."""
    k = len(stamps)
    no = [False] * k
    stamp = torch.tensor(stamps, dtype=torch.float32)
    observation = {"observation.state": stamp[:, None].repeat(1, 3)}
    if image:
        observation["observation.images.front"] = (
            (stamp % 256).to(torch.uint8).view(k, 1, 1, 1).expand(k, 3, 4, 4)
        )
    return TensorDict(
        {
            "observation": TensorDict(observation, batch_size=[k]),
            "base_action": stamp.view(k, 1, 1).repeat(1, 2, 2) + 0.5,
            "action": stamp[:, None].repeat(1, 2) + 0.25,
            "intervention": torch.tensor([s % 2 == 0 for s in stamps]),
            "reward": torch.tensor(reward or [0.0] * k),
            "terminated": torch.tensor(terminated or no),
            "truncated": torch.tensor(truncated or no),
            "final": torch.tensor(final or no),
        },
        batch_size=[k],
    )


class Reference:
    """The same buffer, one list of dictionaries per row."""

    def __init__(self, length: int, rows: int) -> None:
        self.length = length
        self.rows: list[list[dict]] = [[] for _ in range(rows)]

    def append(self, row: int, frame: dict) -> None:
        self.rows[row] = [*self.rows[row], frame][-self.length :]

    def transitions(self, n_step: int, gamma: float) -> dict[int, tuple[float, float, int | None]]:
        """Stamp of the start -> (reward, discount, stamp of the bootstrap; None after success)."""
        result = {}
        for row in self.rows:
            for start, first in enumerate(row):
                if first["final"] or (start == len(row) - 1 and not first["terminated"]):
                    continue
                total, discount, at = 0.0, 1.0, start
                bootstrap: int | None = None
                for _ in range(n_step):
                    total += discount * row[at]["reward"]
                    discount *= gamma
                    if row[at]["terminated"]:
                        discount, bootstrap = 0.0, None
                        break
                    at += 1
                    bootstrap = row[at]["stamp"]
                    if row[at]["final"] or (at == len(row) - 1 and not row[at]["terminated"]):
                        break
                result[first["stamp"]] = (total, discount, bootstrap)
        return result


def check(buffer: ReplayBuffer, reference: Reference, n_step: int, gamma: float) -> None:
    expected = reference.transitions(n_step, gamma)
    starts = buffer.starts()
    if not expected:
        assert not len(starts)
        return
    got = buffer.gather(starts, n_step, gamma)
    stamps = got["observation", "observation.state"][:, 0].long().tolist()
    assert sorted(stamps) == sorted(expected)
    for i, stamp in enumerate(stamps):
        reward, discount, bootstrap = expected[stamp]
        assert got["reward"][i].item() == pytest.approx(reward, rel=1e-5, abs=1e-6)
        assert got["discount"][i].item() == pytest.approx(discount, rel=1e-5, abs=1e-7)
        assert torch.all(got["action"][i] == stamp + 0.25)
        assert torch.all(got["base_action"][i] == stamp + 0.5)
        assert bool(got["intervention"][i]) == (stamp % 2 == 0)
        if bootstrap is not None:
            assert torch.all(got["next_observation", "observation.state"][i] == bootstrap)
            assert torch.all(got["next_base_action"][i] == bootstrap + 0.5)
    sampled = buffer.sample(64, n_step, gamma, torch.Generator().manual_seed(0))
    assert set(sampled["observation", "observation.state"][:, 0].long().tolist()) <= set(expected)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(1, 4),
    length=st.integers(2, 17),
    steps=st.integers(1, 60),
    n_step=st.integers(1, 6),
    gamma=st.floats(0.5, 1.0),
)
def test_equals_the_plain_reference(
    seed: int, rows: int, length: int, steps: int, n_step: int, gamma: float
) -> None:
    rng = random.Random(seed)
    buffer, reference = ReplayBuffer(rows * length, rows), Reference(length, rows)
    stamp, owed = 0, [False] * rows
    for _ in range(steps):
        chosen = rng.sample(range(rows), rng.randint(1, rows))
        batch = []
        for row in chosen:
            ending = rng.choice(["none", "none", "none", "terminated", "truncated", "cut"])
            frame = dict(
                stamp=stamp, reward=round(rng.random(), 3), terminated=False, truncated=False, final=False
            )
            if owed[row] or ending == "cut":
                frame |= {"final": True, "reward": 0.0}
            elif ending != "none":
                frame[ending] = True
            owed[row] = frame["terminated"] or frame["truncated"]
            batch.append(frame)
            stamp += 1
        buffer.append(
            frames(
                [f["stamp"] for f in batch],
                *([f[k] for f in batch] for k in ("reward", "terminated", "truncated", "final")),
            ),
            torch.tensor(chosen),
        )
        for row, frame in zip(chosen, batch, strict=True):
            reference.append(row, frame)
    check(buffer, reference, n_step, gamma)


def test_n_step_by_hand_with_a_time_limit() -> None:
    """A time limit bootstraps from the closing frame, not from the next episode; success does not bootstrap."""
    buffer = ReplayBuffer(20, 1)
    buffer.append(
        frames(
            [0, 1, 2, 3, 10, 11, 12],
            reward=[1.0, 2.0, 4.0, 0.0, 0.0, 1.0, 0.0],
            terminated=[False, False, False, False, False, True, False],
            truncated=[False, False, True, False, False, False, False],
            final=[False, False, False, True, False, False, True],
        ),
        torch.zeros(7, dtype=torch.long),
    )
    got = buffer.gather(buffer.starts(), 3, 0.5)
    assert got["observation", "observation.state"][:, 0].tolist() == [0, 1, 2, 10, 11]
    assert got["reward"].tolist() == [3.0, 4.0, 4.0, 0.5, 1.0]
    assert got["discount"].tolist() == [0.125, 0.25, 0.5, 0.0, 0.0]
    assert got["next_observation", "observation.state"][:3, 0].tolist() == [3, 3, 3]
    assert torch.isfinite(got["next_observation", "observation.state"]).all()
    one = buffer.gather(buffer.starts(), 1, 0.9)  # n and gamma change without a rebuild
    assert one["next_observation", "observation.state"][:3, 0].tolist() == [1, 2, 3]


def test_base_next_is_the_base_action_then_executed() -> None:
    buffer = ReplayBuffer(20, 2)
    for stamp in range(6):
        buffer.append(frames([stamp, 100 + stamp]), torch.tensor([0, 1]))
    got = buffer.gather(buffer.starts(), 1, 0.9)
    now = got["observation", "observation.state"][:, :1]
    assert torch.equal(got["next_base_action"][:, 0, :1], now + 1 + 0.5)


def test_truncation_without_its_closing_frame_is_refused() -> None:
    buffer = ReplayBuffer(20, 1)
    buffer.append(frames([0], truncated=[True]), torch.tensor([0]))
    with pytest.raises(ValueError, match="closing frame"):
        buffer.append(frames([1]), torch.tensor([0]))


def test_closing_a_row_bootstraps_from_its_newest_frame() -> None:
    buffer = ReplayBuffer(20, 2)
    for stamp in range(3):
        buffer.append(frames([stamp, 10 + stamp], reward=[1.0, 1.0]), torch.tensor([0, 1]))
    buffer.close_rows(torch.tensor([0]))
    for stamp in range(3, 5):
        buffer.append(frames([stamp, 10 + stamp], reward=[1.0, 1.0]), torch.tensor([0, 1]))
    got = buffer.gather(buffer.starts(), 3, 0.5)
    table = dict(
        zip(got["observation", "observation.state"][:, 0].tolist(), got["reward"].tolist(), strict=True)
    )
    assert table[0] == 1.5 and table[1] == 1.0 and 2 not in table  # frame 2 became the closing frame
    assert table[10] == 1.75


def test_same_generator_same_sample_and_uniform() -> None:
    buffer = ReplayBuffer(300, 3)
    for stamp in range(70):
        rows = [r for r in range(3) if stamp % (r + 1) == 0]
        buffer.append(frames([stamp + 1000 * r for r in rows]), torch.tensor(rows))
    a = buffer.sample(32, 3, 0.9, torch.Generator().manual_seed(3))
    b = buffer.sample(32, 3, 0.9, torch.Generator().manual_seed(3))
    assert (a == b).all()
    counts = torch.bincount(buffer.draw(60_000, torch.Generator().manual_seed(1)), minlength=300).float()
    drawn = counts[buffer.starts()]
    assert (counts > 0).sum() == len(buffer.starts()) == 70 + 35 + 24 - 3
    assert drawn.min() > 0.75 * drawn.mean() and drawn.max() < 1.25 * drawn.mean()


def test_save_and_load_continue_the_same(tmp_path) -> None:
    buffer = ReplayBuffer(24, 2)
    for stamp in range(17):  # wraps
        buffer.append(frames([stamp, 100 + stamp], image=True), torch.tensor([0, 1]))
    buffer.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["replay.safetensors"]
    again = ReplayBuffer(24, 2)
    again.load(tmp_path)
    for each in (buffer, again):
        each.append(frames([50], image=True), torch.tensor([1]))
    a = buffer.sample(40, 3, 0.9, torch.Generator().manual_seed(3))
    b = again.sample(40, 3, 0.9, torch.Generator().manual_seed(3))
    assert (a == b).all()
    assert a["observation", "observation.images.front"].dtype == torch.uint8
    assert a["observation", "observation.images.front"].shape == (40, 3, 4, 4)


def test_empty_buffer_saves_and_refuses_to_sample(tmp_path) -> None:
    buffer = ReplayBuffer(24, 2)
    buffer.save(tmp_path)
    again = ReplayBuffer(24, 2, example_frame=frames([0]))
    again.load(tmp_path)
    assert len(again) == 0
    with pytest.raises(UserError, match="holds no complete transition"):
        again.sample(4, 1, 0.9)


def test_bad_files_are_user_errors(tmp_path) -> None:
    buffer = ReplayBuffer(24, 2)
    with pytest.raises(UserError, match="cannot read replay"):
        buffer.load(tmp_path)
    buffer.append(frames([0, 1]), torch.tensor([0, 1]))
    buffer.save(tmp_path)
    with pytest.raises(UserError, match=r"keep env.num_envs"):
        ReplayBuffer(36, 3).load(tmp_path)
    whole = (tmp_path / "replay.safetensors").read_bytes()
    (tmp_path / "replay.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot read replay"):
        buffer.load(tmp_path)
    with pytest.raises(UserError, match="too small"):
        ReplayBuffer(3, 2)
    with pytest.raises(UserError, match="do not fit"):
        ReplayBuffer(4, 2).append(frames([0, 1, 2]), torch.zeros(3, dtype=torch.long))


def test_undone_steps_are_never_sampled_and_close_what_came_before():
    """Rows of 8 frames: the newest three of row 0 are undone, then the episode goes on."""
    buffer = ReplayBuffer(32, 2)

    def frame(value, **flags):
        one = {
            name: torch.zeros(1, dtype=torch.bool)
            for name in ("terminated", "truncated", "final", "intervention")
        }
        one |= {name: torch.ones(1, dtype=torch.bool) for name in flags}
        number = torch.tensor([[float(value)]])
        parts = {
            "observation": TensorDict({"x": number}, [1]),
            "base_action": number[:, None],
            "action": number,
        }
        return TensorDict(parts | {"reward": torch.zeros(1)} | one, [1])

    row = torch.zeros(1, dtype=torch.long)
    for value in range(8):
        buffer.append(frame(value), row)
        buffer.append(frame(100 + value), row + 1)
    buffer.forget(torch.tensor([0, 1]), torch.tensor([3, 0]))
    for value in range(20, 24):
        buffer.append(frame(value), row)
    batch = buffer.sample(400, 3, 0.9, torch.Generator().manual_seed(0))
    seen = batch["observation", "x"].flatten()
    assert set(seen.tolist()) == {*range(5), *range(20, 23), *range(100, 107)}
    follows = dict(zip(seen.tolist(), batch["next_observation", "x"].flatten().tolist(), strict=True))
    assert [follows[x] for x in (1, 2, 3, 4)] == [
        4,
        5,
        5,
        5,
    ]  # 5: where the arm was when the undone steps began
    assert [follows[x] for x in (20, 22)] == [23, 23]
    assert batch["discount"][seen == 4].unique().item() == pytest.approx(0.9)
    buffer.forget(row, torch.tensor([99]))  # no more than the episode in flight
    assert set(buffer.sample(200, 1, 0.9)["observation", "x"].flatten().tolist()) == {
        *range(5),
        *range(100, 107),
    }
