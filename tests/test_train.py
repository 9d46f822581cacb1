"""The training loop: resume equals an uninterrupted run bit for bit; kill -9 loses nothing."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from reach import Reach, Walk
from safetensors.torch import load_file

import vla_rl.train as train_module
from vla_rl.errors import UserError
from vla_rl.learner import process
from vla_rl.policies.load import load_policy
from vla_rl.runtime.run_folder import RunFolder
from vla_rl.train import Trainer, open_run

CONFIG = {
    "policy": {},
    "env": {},
    "demonstrations": {"episodes": 0},
    "algorithm": {
        "_target_": "vla_rl.algorithms.factory.residual_td3",
        "scale": 0.5,
        "warmup_steps": 60,
        "critic_updates": 10,
        "hidden": [16, 16],
        "critics": 2,
        "batch_size": 16,
        "capacity": 4000,
    },
    "run": {
        "root": "",
        "name": "r",
        "seed": 3,
        "steps": 400,
        "minutes": None,
        "checkpoint_every": 100,
        "keep_checkpoints": 10,
        "log_every": 50,
        "eval_every": 0,
        "eval_episodes": 4,
        "eval_seed": 9,
    },
}


@pytest.fixture(autouse=True)
def walking_base(monkeypatch):
    monkeypatch.setattr(train_module, "load_base", lambda config, candidates=1: Walk(0.05))


def trainer(tmp_path, name):
    config = OmegaConf.create(CONFIG)
    config.run.root, config.run.name = str(tmp_path), name
    return config, lambda run: Trainer(config, run, Reach(4))


def contents(run: Path) -> dict[str, bytes]:
    """Every tensor of the newest checkpoint as bytes (a safetensors header has no fixed order)."""
    newest = RunFolder.latest_in(run)
    found = {}
    for path in sorted(newest.rglob("*.safetensors")):
        for key, value in load_file(path).items():
            found[f"{path.relative_to(newest)}:{key}"] = value.numpy().tobytes()
    return found


def test_resume_is_bit_exact(tmp_path):
    config, make = trainer(tmp_path, "whole")
    run, _ = open_run(config, None, "")
    make(run).learn()
    run.close()

    class Stop(Exception):
        pass

    config, make = trainer(tmp_path, "parts")
    run, _ = open_run(config, None, "")
    first = make(run)

    def stop(progress, metrics):
        if progress.steps >= 260:
            raise Stop

    first.on_progress = stop
    with pytest.raises(Stop):
        first.learn()
    run.close()
    torch.manual_seed(999)  # whatever the new process would start with
    run, checkpoint = open_run(config, str(tmp_path / "parts"), "")
    again = make(run)
    again.restore(checkpoint)
    assert again.progress.steps == 200
    again.learn()
    run.close()
    whole, parts = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert len(whole) > 20 and set(whole) == set(parts)
    assert [name for name in whole if whole[name] != parts.get(name)] == []
    steps = [json.loads(t)["step"] for t in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_what_a_run_has_learned_may_be_asked_for_another_horizon(tmp_path, monkeypatch):
    config, make = trainer(tmp_path, "short")
    config.run.steps = 100
    run, _ = open_run(config, None, OmegaConf.to_yaml(config))
    make(run).learn()
    run.close()
    asked = []

    def base(config, candidates=1):
        asked.append(config.get("horizon"))
        return Walk(0.05)

    monkeypatch.setattr(train_module, "load_base", base)
    path = str(tmp_path / "short")
    for horizon in (None, 2):
        load_policy(OmegaConf.create({"path": path, "horizon": horizon}), Reach(4))
    assert asked == [None, 2]


def test_a_teleoperators_share_is_logged_and_resume_stays_bit_exact(tmp_path):
    def watched(name):
        config, _ = trainer(tmp_path, name)
        config.teleop = {"_target_": "vla_rl.policies.intervened.Overseer", "patience": 3, "share": 0.5}
        config.teleop.expert = {"_target_": "reach.walk"}
        return config, lambda run: Trainer(config, run, Reach(4))

    class Stop(Exception):
        pass

    def stop(progress, metrics):
        if progress.steps >= 260:
            raise Stop

    for name in ("whole", "parts"):
        config, make = watched(name)
        run, _ = open_run(config, None, "")
        learner = make(run)
        if name == "whole":
            learner.learn()
        else:
            learner.on_progress = stop
            with pytest.raises(Stop):
                learner.learn()
            run.close()
            torch.manual_seed(999)
            run, checkpoint = open_run(config, str(tmp_path / name), "")
            learner = make(run)
            learner.restore(checkpoint)
            learner.learn()
        run.close()
    whole, parts = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert [key for key in whole if whole[key] != parts[key]] == []
    lines = [json.loads(t) for t in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert 0 < max(line["intervention"] for line in lines) < 1


class TwoTasks(Reach):
    """Rows may play either of two tasks; remembers what was chosen."""

    task_choice = True

    def __init__(self, rows):
        super().__init__(rows)
        self.playing, self.history = self.own_task_ids(), []

    def own_task_ids(self):
        return ["easy", "hard"] * (self.num_envs // 2)

    def task_ids(self):
        return list(self.playing)

    def reset(self, *, seed=None, options=None):
        for row, task in (options or {}).get("task", {}).items():
            self.playing[row] = task
            self.history.append(task)
        return super().reset(seed=seed, options=options)


def test_a_curriculum_chooses_tasks_is_logged_and_resumes_bit_for_bit(tmp_path):
    def many(name):
        config, _ = trainer(tmp_path, name)
        config.curriculum = {"rule": "near_half", "temperature": 0.1, "window": 8, "least": 2, "share": 0.1}
        env = TwoTasks(4)
        return config, env, lambda run: Trainer(config, run, env)

    class Stop(Exception):
        pass

    def stop(progress, metrics):
        if progress.steps >= 260:
            raise Stop

    config, env, make = many("whole")
    run, _ = open_run(config, None, "")
    make(run).learn()
    run.close()
    assert set(env.history) == {"easy", "hard"}
    lines = [json.loads(t) for t in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert 0 < lines[-1]["share_easy"] < 1 and "success_hard" in lines[-1]
    config, _, make = many("parts")
    run, _ = open_run(config, None, "")
    learner = make(run)
    learner.on_progress = stop
    with pytest.raises(Stop):
        learner.learn()
    run.close()
    torch.manual_seed(999)
    run, checkpoint = open_run(config, str(tmp_path / "parts"), "")
    config, again, make = many("parts")
    learner = make(run)
    learner.restore(checkpoint)
    learner.learn()
    run.close()
    assert again.history == env.history[-len(again.history) :]
    whole, parts = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert [key for key in whole if whole[key] != parts[key]] == []


def test_existing_run_is_never_overwritten(tmp_path):
    config, _ = trainer(tmp_path, "r")
    run, _ = open_run(config, None, "a: 1\n")
    run.close()
    with pytest.raises(UserError, match="exists"):
        open_run(config, None, "a: 2\n")
    assert (tmp_path / "r" / "config.yaml").read_text() == "a: 1\n"
    with pytest.raises(UserError, match="no run there"):
        open_run(config, str(tmp_path / "nothing"), "")


NURSERY = """
import os, sys
sys.path[:0] = [{data!r}, {root!r}]
import pathlib
import test_train as t

def live(name="killed", steps=10**6):
    t.torch.set_num_threads(1)
    t.train_module.load_base = lambda config, candidates=1: t.Walk(0.05)
    config, make = t.trainer({tmp!r}, name)
    folder = pathlib.Path({tmp!r}) / name
    resume = str(folder) if (folder / "config.yaml").is_file() else None
    config.run.steps = steps
    config.run.checkpoint_every = 60
    config.run.keep_checkpoints = 2
    run, checkpoint = t.open_run(config, resume, "x: 1")
    trainer = make(run)
    if checkpoint is not None:
        trainer.restore(checkpoint)
    if name == "killed":
        print("ready", os.getpid(), trainer.progress.steps, flush=True)
    trainer.learn()
    run.close()

live("warm", 80)  # what is imported late is imported here, once
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            live()
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""


def test_sigkill_at_random_moments_always_leaves_a_loadable_run(tmp_path):
    """One process imports and forks the others: twenty kills are then not twenty imports of torch."""
    here = Path(__file__).parent
    code = NURSERY.format(data=str(here / "data"), root=str(here), tmp=str(tmp_path))
    moments = random.Random(0)
    seen = [0]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(here.parent)}
    nursery = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env=environment,
    )
    try:
        for _ in range(24):
            nursery.stdin.write("next\n")
            word, pid, steps = nursery.stdout.readline().split()
            assert word == "ready"
            seen.append(int(steps))
            # It dies while it collects, learns or saves.
            time.sleep(moments.uniform(0.0, 0.4))
            os.kill(int(pid), signal.SIGKILL)
            assert nursery.stdout.readline() == "gone\n"
            newest = RunFolder.latest_in(tmp_path / "killed")
            if newest is not None:
                assert int(newest.name) >= seen[-1]
    finally:
        nursery.kill()
        nursery.wait()
    assert seen[-1] > 0 and seen == sorted(seen)


def test_evaluating_in_environments_of_its_own_changes_nothing(tmp_path):
    found, curve = {}, []
    for name, every in (("plain", 0), ("watched", 40)):
        config, _ = trainer(tmp_path, name)
        config.run.eval_every = every
        run, _ = open_run(config, None, "")
        Trainer(config, run, Reach(4), eval_env=Reach(4)).learn()
        run.close()
        found[name] = contents(tmp_path / name)
        rows = [json.loads(text) for text in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        curve.append([row["step"] for row in rows if "evaluation" in row])
    assert curve == [[], list(range(40, 401, 40))]
    assert found["plain"] == found["watched"]


@pytest.mark.parametrize("where", ["trainer", "process"])
def test_an_iteration_that_ends_early_is_over(where):
    """Target KL: of the updates that were due, the rest are not asked for."""

    class Early:
        on_policy, done = True, 0

        def updates_due(self):
            return 8 if self.done == 0 else 2 - self.done

        def update(self):
            assert self.updates_due(), "nothing is due"
            self.done += 1
            return {"loss": torch.tensor(1.0)}

    algorithm = Early()
    if where == "trainer":
        beside = SimpleNamespace(algorithm=algorithm, env=SimpleNamespace(num_envs=1), metrics={})
        Trainer._update(beside)  # type: ignore[arg-type]
    else:
        beside = SimpleNamespace(learner=algorithm, metrics={})
        process._Loop._update(beside, 8)  # type: ignore[arg-type]
    assert algorithm.done == 2 and beside.metrics == {"loss": 1.0}


def test_evaluations_that_would_let_no_episode_end_are_refused(tmp_path):
    config, make = trainer(tmp_path, "r")
    config.run.eval_every = 40
    run, _ = open_run(config, None, "")
    with pytest.raises(UserError, match=r"run.eval_every=40: .*run.eval_env=own"):
        make(run)
    run.close()


def test_groups_play_the_same_scenes_through_cuts():
    """The collector begins and cuts episodes; those that are compared had the same seed."""
    from vla_rl.algorithms.groups import Groups
    from vla_rl.rollout.collector import Collector

    groups, seeds, compared = Groups(4, 2), {}, []

    def scene(_, row):
        seed = groups.begin(row)
        seeds[row, groups.begun[row]] = seed
        return seed

    collector = Collector(
        Reach(4), Walk(0.05), scene, sink=lambda frames, rows: compared.extend(groups.observe(frames, rows))
    )
    for _ in range(4):
        collector.begin()
        for _ in range(37):
            collector.step()
        collector.cut()
    assert groups.seen > 4 and groups.mixed == 0, (
        "from one scene, a policy that leaves nothing to chance ends alike"
    )
    for first, second in zip(compared[::2], compared[1::2], strict=True):
        assert seeds[first[:2]] == seeds[second[:2]] and first[0] != second[0]


@pytest.mark.parametrize(
    ("settings", "learner", "says"),
    [({}, "process", "run.learner=inline"), ({"schedule": {"stages": [1]}}, "inline", "schedule=none")],
)
def test_groups_where_scenes_cannot_be_chosen(settings, learner, says):
    beside = SimpleNamespace(config=OmegaConf.create({"algorithm": {"group": 2}} | settings))
    with pytest.raises(UserError, match=says):
        Trainer._scenes(beside, learner)  # type: ignore[arg-type]
