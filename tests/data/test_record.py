"""Recording: what is stored, that it is a function of (policy, seed), that a kill loses little, bad input."""

import json
import os
import random
import shutil
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from reach import CAMERA, Reach, Rewound, Walk

from vla_rl.data.build import MARKER
from vla_rl.data.dataset import load_episodes
from vla_rl.data.record import record, replay
from vla_rl.environment import row_mask
from vla_rl.errors import UserError
from vla_rl.keys import ACTION, ENV_STATE, STATE


def same(a: Path, b: Path) -> None:
    """Two data sets hold the same episodes."""
    for x, y in zip(load_episodes(a), load_episodes(b), strict=True):
        assert (x.index, x.task, x.seed, x.success) == (y.index, y.task, y.seed, y.success)
        assert x.data.keys() == y.data.keys() and x.final.keys() == y.final.keys()
        for key in x.data:
            assert torch.equal(x.data[key], y.data[key]), key
        for key in x.final:
            assert torch.equal(x.final[key], y.final[key]), key


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("record") / "demos"
    summary = record(Reach(3), Walk(), 7, out, seed=5)
    assert summary["episodes"] == summary["attempts"] == 7 and summary["path"] == str(out)
    assert not out.with_name("demos.recording").exists()
    return out


def test_frames_are_what_happened(recorded: Path) -> None:
    for i, episode in enumerate(load_episodes(recorded)):
        assert episode.seed == 5 + i
        env = Reach(1)
        observation, _ = env.reset(seed=[5 + i])
        assert episode.task == observation["task"][0]
        for t in range(episode.length):
            assert torch.equal(episode.data[STATE][t], observation[STATE][0])
            assert torch.equal(episode.data[ENV_STATE][t], observation[ENV_STATE][0])
            image, shown = episode.data[CAMERA][t].float(), env.look()[CAMERA][0].float()
            assert (image - shown).abs().mean() < 3
            observation, reward, terminated, truncated, info = env.step(episode.data[ACTION][t][None])
            assert episode.data["next.reward"][t] == reward[0]
            assert episode.data["next.success"][t] == info["success"][0]
            assert episode.data["next.done"][t] == (terminated | truncated)[0]
            assert episode.data["next.truncated"][t] == truncated[0]
        assert episode.data["next.done"].sum() == 1 and episode.data["next.done"][-1]
        assert torch.equal(episode.final[STATE], observation[STATE][0])
        assert torch.equal(episode.final[CAMERA], env.look()[CAMERA][0])


def test_action_is_the_executed_one(recorded: Path) -> None:
    """Walk asks for up to 0.3; the bounds are 0.1."""
    actions = torch.cat([e.data[ACTION] for e in load_episodes(recorded, images=False)])
    assert actions.abs().max() == pytest.approx(0.1)


def test_does_not_depend_on_the_number_of_environments(recorded: Path, tmp_path: Path) -> None:
    record(Reach(1), Walk(), 7, tmp_path / "one", seed=5)
    record(Reach(16), Walk(), 7, tmp_path / "many", seed=5)
    same(recorded, tmp_path / "one")
    same(recorded, tmp_path / "many")


def test_a_noisy_policy_that_draws_its_key_at_the_start_is_a_function_of_the_seed(tmp_path: Path) -> None:
    class Noisy(Walk):
        """Noise of step t comes from the episode's own key, drawn in ``initial_state``."""

        def initial_state(self, batch_size):
            return super().initial_state(batch_size).set("key", torch.randint(2**40, (batch_size,)))

        def act(self, observation, state, *, deterministic=False):
            output, after = super().act(observation, state)
            for row, number in enumerate((state["key"] + state["steps"]).tolist()):
                noise = torch.randn(2, generator=torch.Generator().manual_seed(number))
                output["action"][row] = output["action"][row].clamp(-0.08, 0.08) + 0.02 * noise
            return output, after.set("key", state["key"])

    for size in (1, 4):
        record(Reach(size), Noisy(), 5, tmp_path / str(size), cameras=())
    same(tmp_path / "1", tmp_path / "4")


def test_stock_lerobot_reads_it(recorded: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    stock = LeRobotDataset("local/demos", root=recorded, video_backend="pyav")
    episodes = load_episodes(recorded)
    assert stock.num_episodes == 7 and stock.num_frames == sum(e.length for e in episodes)
    assert stock.meta.fps == 20 and stock.meta.camera_keys == [CAMERA]
    assert stock.meta.stats is not None and stock.meta.stats[CAMERA]["mean"].shape == (3, 1, 1)
    n = 0
    for episode in episodes:
        for t in range(episode.length):
            item = stock[n]
            assert item["task"] == episode.task and item["seed"] == episode.seed
            assert torch.equal(item[ACTION], episode.data[ACTION][t])
            assert torch.equal(item[STATE], episode.data[STATE][t])
            assert item["next.done"].dtype == torch.bool
            assert torch.equal((item[CAMERA] * 255).round().to(torch.uint8), episode.data[CAMERA][t])
            n += 1
    chunks = LeRobotDataset(
        "local/demos", root=recorded, video_backend="pyav", delta_timestamps={ACTION: [0, 0.05, 0.1]}
    )
    assert chunks[0][ACTION].shape == (3, 2)


def test_replays_to_the_same_success(recorded: Path, tmp_path: Path) -> None:
    assert replay(Reach(2), recorded) == [e.success for e in load_episodes(recorded, images=False)]
    record(Reach(4), Walk(0.05), 9, tmp_path / "slow", seed=0, cameras=())
    success = [e.success for e in load_episodes(tmp_path / "slow")]
    assert 0 < sum(success) < 9
    assert replay(Reach(4), tmp_path / "slow") == success
    assert replay(Reach(4), tmp_path / "slow", episodes=[3, 1]) == [success[3], success[1]]


def test_only_success_keeps_the_first_successes(tmp_path: Path) -> None:
    everything = record(Reach(2), Walk(0.05), 12, tmp_path / "all", cameras=())
    wanted = [e.seed for e in load_episodes(tmp_path / "all") if e.success][:4]
    for size in (1, 5):
        out = tmp_path / f"some{size}"
        summary = record(Reach(size), Walk(0.05), 4, out, cameras=(), only_success=True)
        episodes = load_episodes(out)
        assert [e.seed for e in episodes] == wanted and all(e.success for e in episodes)
        assert summary["attempts"] == wanted[-1] + 1 and summary["successes"] == 4
    assert everything["successes"] == sum(e.success for e in load_episodes(tmp_path / "all"))


def test_steps_that_somebody_took_over_are_marked(tmp_path: Path) -> None:
    from vla_rl.keys import INTERVENTION
    from vla_rl.policies.intervened import Intervened, Overseer

    env = Reach(2)
    policy = Intervened(Walk(0.01), Overseer(Walk(), env.env_spec, patience=5))
    record(env, policy, 4, tmp_path / "demos", seed=5)
    episodes = load_episodes(tmp_path / "demos")
    assert any(episode.length > 5 for episode in episodes)
    for episode in episodes:
        taken = episode.data[INTERVENTION].flatten().bool()
        assert torch.equal(taken, torch.arange(episode.length) >= 5)
        speed = episode.data[ACTION].abs().amax(1)
        assert (speed[~taken] < 0.02).all()


def test_with_a_journal_a_kill_loses_no_finished_step(tmp_path: Path) -> None:
    out, told = tmp_path / "demos", tmp_path / "told"

    class Slow(Reach):
        """Says how many steps have been taken, and is killed in the third episode."""

        taken = 0

        def step(self, actions):
            Slow.taken += 1
            told.write_text(str(Slow.taken))
            if Slow.taken == 61:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().step(actions)

    child = os.fork()
    if child == 0:
        record(Slow(1), Walk(1e-4), 4, out, seed=5, journal=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and told.read_text() == "61"
    summary = record(Reach(1), Walk(1e-4), 4, out, seed=5, journal=True)
    assert summary["episodes"] == 4
    whole = record(Reach(1), Walk(1e-4), 4, tmp_path / "whole", seed=5)
    cut, played = load_episodes(out), load_episodes(tmp_path / "whole")
    assert whole["frames"] == 100
    # Two episodes of 25 steps; ten steps of the third were finished, nine of them have an observed outcome.
    assert [episode.length for episode in cut] == [25, 25, 9, 25]
    assert torch.equal(cut[2].data[STATE], played[2].data[STATE][:9])
    assert torch.equal(cut[2].final[STATE], played[2].data[STATE][9])
    assert cut[2].data["next.truncated"][-1] and not cut[2].success
    assert not out.with_name("demos.recording").exists()


def test_too_few_successes_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only 0 of 20 attempts at Reach succeeded, 5 were asked for"):
        record(Reach(4), Walk(0.001), 5, tmp_path / "x", cameras=(), only_success=True, max_attempts=20)
    assert not (tmp_path / "x").exists()


def test_it_ends_early_when_successes_are_too_rare(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"only \d of [123]\d\d attempts at Reach succeeded, 40 were"):
        record(Reach(4), Walk(0.001), 40, tmp_path / "x", cameras=(), only_success=True)
    quick = record(Reach(4), Walk(0.03), 5, tmp_path / "y", seed=5, cameras=(), only_success=True)
    assert quick["successes"] == 5, "a policy that succeeds now and then gets its attempts"


def test_what_succeeded_is_kept_when_more_attempts_are_allowed(tmp_path: Path) -> None:
    out, settings = tmp_path / "x", {"seed": 5, "cameras": (), "only_success": True}
    with pytest.raises(UserError, match="attempts=12"):
        record(Reach(4), Walk(0.03), 5, out, max_attempts=6, **settings)
    summary = record(Reach(4), Walk(0.03), 5, out, max_attempts=200, **settings)
    whole = record(Reach(4), Walk(0.03), 5, tmp_path / "y", **settings)
    assert summary["attempts"] == whole["attempts"] > 6 and summary["successes"] == 5
    same(out, tmp_path / "y")


class TwoTasks(Reach):
    """Row i plays task i mod 2, as ``sim.vector`` deals them; in the second the goal is nearer."""

    def task_ids(self) -> list[str]:
        return ["far", "near"] * (self.num_envs // 2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        mask = row_mask(options, self.num_envs)
        for row in range(1, self.num_envs, 2):
            if mask[row]:
                self.goal[row] = self.position[row] + 0.3 * (self.goal[row] - self.position[row])
        return self._observation(), {}


def test_tasks_take_turns_and_each_gets_its_share(tmp_path: Path) -> None:
    """Which row plays which task must not decide what is recorded, nor must the easier task fill the set."""
    summary = record(TwoTasks(2), Walk(0.03), 9, tmp_path / "a", cameras=(), only_success=True)
    record(TwoTasks(8), Walk(0.03), 9, tmp_path / "b", cameras=(), only_success=True)
    same(tmp_path / "a", tmp_path / "b")
    episodes = load_episodes(tmp_path / "a")
    assert [sum(e.task_id == name for e in episodes) for name in ("far", "near")] == [5, 4]
    assert all(e.task_id == ("far", "near")[(e.seed or 0) % 2] for e in episodes)
    far, near = summary["per_task"]["far"], summary["per_task"]["near"]
    assert far["attempts"] > far["successes"] == 5 and near["success_rate"] > far["success_rate"]
    assert all(replay(TwoTasks(6), tmp_path / "a"))
    with pytest.raises(UserError, match="plays (near|far), the environment only Reach"):
        replay(Reach(1), tmp_path / "a")


def test_one_frame_episodes(tmp_path: Path) -> None:
    record(Reach(2, steps=1), Walk(), 3, tmp_path / "x")
    assert [e.length for e in load_episodes(tmp_path / "x")] == [1, 1, 1]


def test_resume_after_an_error_continues_and_is_equal(recorded: Path, tmp_path: Path) -> None:
    class Stops(Walk):
        calls = 0

        def act(self, observation, state, *, deterministic=False):
            self.calls += 1
            if self.calls > 15:
                raise KeyboardInterrupt
            return super().act(observation, state)

    out = tmp_path / "x"
    with pytest.raises(KeyboardInterrupt):
        record(Reach(2), Stops(), 7, out, seed=5, policy_id="walk")
    assert not out.exists()
    with pytest.raises(UserError, match=r"recorded with seed=5, not 6"):
        record(Reach(2), Walk(), 7, out, seed=6, policy_id="walk")
    with pytest.raises(UserError, match="unfinished recording"):
        load_episodes(out)
    progress: list[dict] = []
    summary = record(Reach(4), Walk(), 7, out, seed=5, policy_id="walk", progress=progress.append)
    assert 0 < summary["resumed_episodes"] < 7
    assert len(progress) == 7 - summary["resumed_episodes"] and progress[-1]["episodes"] == 7
    same(recorded, out)


def test_a_finished_recording_is_returned_not_made_again(recorded: Path) -> None:
    before = (recorded / MARKER).stat().st_mtime_ns
    assert record(Reach(3), Walk(), 7, recorded, seed=5)["resumed_episodes"] == 7
    assert (recorded / MARKER).stat().st_mtime_ns == before
    with pytest.raises(UserError, match="recorded with episodes=7, not 8"):
        record(Reach(3), Walk(), 8, recorded, seed=5)


class Slow(Reach):
    """Leaves time to be killed in."""

    def step(self, actions):
        time.sleep(0.002)
        return super().step(actions)


def forked(out: Path) -> int:
    """A process that records 20 episodes; forked, so that twenty kills do not import torch twenty times."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's idle threads
        pid = os.fork()
    if pid == 0:
        try:
            torch.set_num_threads(1)
            record(Slow(3), Walk(), 20, out, seed=3)
        finally:
            os._exit(0)
    return pid


@pytest.mark.timeout(300)
def test_sigkill_at_random_times_loses_nothing_finished(tmp_path: Path) -> None:
    out, clean = tmp_path / "killed", tmp_path / "clean"
    record(Reach(2), Walk(), 20, clean, seed=3)
    rng = random.Random(0)
    kept, kills = 0, 0
    while not out.exists():
        pid = forked(out)
        time.sleep(rng.uniform(0.005, 0.12) if kills < 22 else 0.3 * (kills - 20))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills += 1
        if out.exists():
            break
        episodes = len(list((tmp_path / "killed.recording" / "episodes").glob("*.npz")))
        assert episodes >= kept, "a finished episode was lost"
        kept = episodes
        assert kills < 80
    assert kills > 20
    record(Reach(3), Walk(), 20, out, seed=3)  # finishes the clean-up at most
    assert not (tmp_path / "killed.recording").exists()
    same(clean, out)


@pytest.mark.timeout(120)
def test_two_processes_cannot_record_into_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "x"
    pid = forked(out)
    try:
        while not (tmp_path / "x.recording" / "settings.json").exists():
            time.sleep(0.005)
        with pytest.raises(UserError, match="another process is recording"):
            record(Reach(3), Walk(), 20, out, seed=3)
    finally:
        os.waitpid(pid, 0)
    assert len(load_episodes(out, images=False)) == 20


@pytest.mark.timeout(120)
def test_disk_full_is_one_line_and_the_rest_is_kept(tmp_path: Path, monkeypatch) -> None:
    """A real short disk: a file-size limit makes the kernel refuse the write of a long episode."""
    import resource

    out = tmp_path / "x"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    progress: list[dict] = []

    def tight(info: dict) -> None:
        progress.append(info)
        if len(progress) == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))

    try:
        with pytest.raises(UserError, match="no space left while writing .*run the same command again"):
            record(Reach(2), Walk(), 7, out, seed=5, progress=tight)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not out.exists()
    assert not list((tmp_path / "x.recording" / "episodes").glob(".*"))  # the half-written file is gone
    assert record(Reach(2), Walk(), 7, out, seed=5)["resumed_episodes"] == 3


@pytest.mark.timeout(120)
def test_disk_full_while_assembling(tmp_path: Path) -> None:
    import resource

    out = tmp_path / "x"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def tight(info: dict) -> None:
        if info["attempts"] == 7:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))

    try:
        with pytest.raises(UserError, match="no space left while writing"):
            record(Reach(2), Walk(), 7, out, seed=5, progress=tight)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not out.exists()
    assert record(Reach(2), Walk(), 7, out, seed=5)["resumed_episodes"] == 7


def test_bad_input_is_refused_before_anything_starts(tmp_path: Path) -> None:
    full = tmp_path / "mine"
    full.mkdir()
    (full / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="exists and is not a recording"):
        record(Reach(1), Walk(), 1, full)
    assert (full / "thesis.txt").read_text() == "precious" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(UserError, match="is a file"):
        record(Reach(1), Walk(), 1, full / "thesis.txt")
    with pytest.raises(UserError, match=r"camera observation.images.wrist .* has: observation.images.top"):
        record(Reach(1), Walk(), 1, tmp_path / "x", cameras=["wrist"])
    with pytest.raises(UserError, match="episodes=0"):
        record(Reach(1), Walk(), 0, tmp_path / "x")
    with pytest.raises(UserError, match="whole number of Hz"):
        record(Reach(1, rate_hz=12.5), Walk(), 1, tmp_path / "x")
    assert len(list(tmp_path.iterdir())) == 1


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    record(Reach(1), Walk(), 1, tmp_path / "x", cameras=["top"])
    assert load_episodes(tmp_path / "x")[0].data[CAMERA].dtype == torch.uint8


def test_a_dead_simulator_process_is_played_again(recorded: Path, tmp_path: Path) -> None:
    class Dies(Reach):
        """Reports a restarted worker, as ``sim.vector`` does, at one step."""

        count = 0

        def step(self, actions):
            observation, reward, terminated, truncated, info = super().step(actions)
            self.count += 1
            restarted = torch.zeros(self.num_envs, dtype=torch.bool)
            if self.count == 6:
                restarted[1] = truncated[1] = self.over[1] = True
                info["success"][1] = terminated[1] = False
            return observation, reward, terminated, truncated, info | {"worker_restarted": restarted}

    record(Dies(3), Walk(), 7, tmp_path / "x", seed=5)
    same(recorded, tmp_path / "x")


def test_a_discarded_episode_is_played_again_as_often_as_it_takes(recorded: Path, tmp_path: Path) -> None:
    class Discarded(Reach):
        """A person throws an episode away, four times."""

        count = 0

        def step(self, actions):
            observation, reward, terminated, truncated, info = super().step(actions)
            self.count += 1
            discarded = torch.zeros(self.num_envs, dtype=torch.bool)
            if self.count in (3, 6, 9, 12):
                discarded[1] = truncated[1] = self.over[1] = True
                info["success"][1] = terminated[1] = False
            return observation, reward, terminated, truncated, info | {"discarded": discarded}

    record(Discarded(3), Walk(), 7, tmp_path / "x", seed=5, journal=True)
    same(recorded, tmp_path / "x")


def test_damaged_files_are_named(recorded: Path, tmp_path: Path) -> None:
    for file, match in (
        ("data/chunk-000/file-000.parquet", r"file-000.parquet cannot be read"),
        (f"videos/{CAMERA}/chunk-000/file-000.mp4", r"file-000.mp4"),
        ("meta/info.json", r"info.json is damaged"),
    ):
        copy = tmp_path / file.replace("/", "_")
        shutil.copytree(recorded, copy)
        data = (copy / file).read_bytes()
        (copy / file).write_bytes(data[: len(data) // 2])
        with pytest.raises(UserError, match=match):
            load_episodes(copy)


def test_marker_names_the_settings(recorded: Path) -> None:
    marker = json.loads((recorded / MARKER).read_text())
    assert marker["settings"]["env"] == "Reach" and marker["summary"]["episodes"] == 7
    assert np.isclose(marker["summary"]["success_rate"], 1.0)


@pytest.mark.timeout(240)
def test_a_real_simulator_replays_to_the_same_success(tmp_path: Path) -> None:
    """ManiSkill, two tasks, a disturbed expert that sometimes fails, replayed by another number of rows."""
    from sim.experts.maniskill import ManiSkillExpert
    from sim.vector import make

    ids = ["PushCube-v1", "PullCube-v1"]
    env = make("sim.maniskill:ManiSkillEnv", ids, num_envs=4, num_workers=1, max_episode_steps=24)
    try:
        record(env, ManiSkillExpert(env, noise=0.1), 8, tmp_path / "x", cameras=(), seed=40)
        episodes = load_episodes(tmp_path / "x")
        success = [e.success for e in episodes]
        assert {e.task_id for e in episodes} == set(ids) and 0 < sum(map(bool, success)) < 8
        assert replay(env, tmp_path / "x") == success
        record(env, ManiSkillExpert(env), 2, tmp_path / "seen", seed=7)
        seen = load_episodes(tmp_path / "seen")
        assert all(e.success for e in seen) and len({e.task for e in seen}) == 2
        env.reset(seed=[7, 8, 9, 10])
        key = next(iter(env.env_spec.cameras))
        difference = seen[0].data[key][0].float() - env.look([0])[key][0].float()
        assert difference.abs().mean() < 2.5  # the simulator's own picture, but for the video codec
    finally:
        env.close()


@pytest.mark.timeout(120)
def test_metaworld_replays_to_the_same_success(tmp_path: Path) -> None:
    """Successes and time-outs of a disturbed expert, replayed by another number of rows."""
    from sim.experts.metaworld import MetaWorldExpert
    from sim.vector import make

    ids = ["reach-v3", "push-v3"]
    env = make("sim.metaworld:MetaWorldEnv", ids, num_envs=4, num_workers=1)
    other = make("sim.metaworld:MetaWorldEnv", ids, num_envs=2, num_workers=1)
    try:
        record(env, MetaWorldExpert(env, noise=0.6), 6, tmp_path / "x", cameras=(), seed=3)
        episodes = load_episodes(tmp_path / "x")
        success = [e.success for e in episodes]
        assert any(success) and not all(success)
        assert [bool(e.data["next.truncated"][-1]) for e in episodes] == [not s for s in success]
        assert replay(other, tmp_path / "x") == success
    finally:
        env.close()
        other.close()


def test_undone_steps_are_not_in_the_data(tmp_path: Path) -> None:
    """Of a way that takes more than ten steps, four are undone and gone again."""
    seed = next(
        s for s in range(99) if record(Reach(1), Walk(0.05), 1, tmp_path / f"{s}", seed=s)["frames"] > 10
    )
    straight = load_episodes(tmp_path / f"{seed}")[0]
    record(Rewound(at=8, count=4), Walk(0.05), 1, tmp_path / "undone", seed=seed)
    undone = load_episodes(tmp_path / "undone")[0]
    assert undone.length == straight.length
    for key in (STATE, ACTION):  # 4 steps stay of the first 8, and the way goes on from where they ended
        assert torch.allclose(undone.data[key], straight.data[key], atol=1e-6)


def test_undone_steps_stay_undone_after_a_crash(tmp_path: Path) -> None:
    class Crash(Rewound):
        """Dies two steps after the rewind."""

        def step(self, actions):
            if self.at < 0 and len(self.path) == 6:
                raise RuntimeError("power cut")
            return super().step(actions)

    out = tmp_path / "cut"
    settings = {"seed": 5, "journal": True}
    with pytest.raises(RuntimeError, match="power cut"):
        record(Crash(at=8, count=4), Walk(0.02), 2, out, **settings)
    record(Reach(1), Walk(0.02), 2, out, **settings)
    kept, whole = load_episodes(out)[0], Reach(1)
    position = whole.reset(seed=[5])[0][STATE][0].clone()
    assert kept.length == 5 and kept.data["next.truncated"][-1]  # 8 - 4 + 2, the last one closes it
    for t in range(kept.length):
        assert torch.allclose(kept.data[STATE][t], position, atol=1e-6)
        position += kept.data[ACTION][t]


def test_a_policys_folder_is_enough_to_name_it():
    """The default of ``record`` is the expert, who has no folder."""
    from vla_rl.commands.record import with_policy
    from vla_rl.config import compose

    config = compose("record", with_policy(["policy.path=runs/mine", "out=data/x"]))
    assert config.policy.path == "runs/mine" and not config.policy.get("_target_")
    assert with_policy(["policy=specialists", "policy.path=x"]) == ["policy=specialists", "policy.path=x"]
    assert compose("record", with_policy(["out=data/x"])).policy._target_
