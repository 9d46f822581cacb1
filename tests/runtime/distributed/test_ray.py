"""Training on Ray with a real simulator, while its processes are killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[2] / "policies"))

import tiny

from vla_rl.commands.train import train
from vla_rl.config import compose
from vla_rl.errors import UserError
from vla_rl.runtime.distributed import actors
from vla_rl.runtime.distributed.actors import connect
from vla_rl.runtime.distributed.batches import part_of
from vla_rl.runtime.distributed.driver import begin_from, check_distributed, fingerprint_of
from vla_rl.runtime.metrics import read_metrics
from vla_rl.runtime.run_folder import RunFolder
from vla_rl.train import distributed

GOAL = 900

# Ray, and each process that takes a dead one's place, start in half a minute.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.reach_base(tmp_path_factory.mktemp("base") / "act")


def words(base, root, **more):
    settings = {
        "experiment": "bench",
        "env": "metaworld",
        "env.ids": "[reach-v3]",
        "env.cameras": "[]",
        "env.num_envs": 2,
        "env.num_workers": 0,
        "env.max_episode_steps": 90,
        "policy.path": base,
        "policy.horizon": 4,
        "demonstrations.episodes": 2,
        "algorithm.warmup_steps": 100,
        "algorithm.critic_updates": 10,
        "algorithm.hidden": "[32,32]",
        "run.root": root,
        "run.name": "ray",
        "run.steps": GOAL,
        "run.final_episodes": 2,
        "run.checkpoint_every": 300,
        "run.log_every": 50,
        "launcher": "ray",
        "launcher.every": 5,
        "num_collectors": 2,
        "num_inference": 1,
    }
    return [f"{key}={value}" for key, value in (settings | more).items()]


def words_of(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kill_in_turn(over, lost, names):
    """kill -9 a process of each name, one after the other, a few seconds apart."""
    for name in names:
        while not over.is_set():  # a busy machine may take minutes to the first step
            here = psutil.Process().children(recursive=True)
            mine = [p for p in here if f"ray::{name}" in words_of(p)]
            if mine and lost["steps"]() > 100:
                os.kill(mine[0].pid, signal.SIGKILL)
                lost["killed"].append(name)
                break
            time.sleep(0.3)
        over.wait(3)


def train_and_kill(words, root, names):
    """Folder of a run in which a process of each name was killed."""
    metrics = root / "ray" / "metrics.jsonl"

    def steps():
        lines = metrics.read_text().splitlines() if metrics.is_file() else []
        return json.loads(lines[-1])["step"] if lines else 0

    over, lost = threading.Event(), {"steps": steps, "killed": []}
    chaos = threading.Thread(target=kill_in_turn, args=(over, lost, names))
    chaos.start()
    try:
        folder = train(words)
    finally:
        over.set()
        chaos.join()
    assert lost["killed"] == list(names)
    return folder


def test_a_run_survives_the_death_of_every_part_and_counts_each_step_once(base, tmp_path):
    folder = train_and_kill(
        words(base, tmp_path), tmp_path, ("CollectorActor", "InferenceActor", "LearnerActor")
    )
    newest = RunFolder.latest_in(folder)
    state = json.loads((newest / "trainer.json").read_text())
    counters = json.loads((newest / "algorithm" / "algorithm.json").read_text())
    assert state["progress"]["steps"] == counters["steps"] >= GOAL
    assert sum(slot["steps"] for slot in state["distributed"]) == counters["steps"]
    assert max(slot["generation"] for slot in state["distributed"]) >= 2, "a collector was replaced"
    last = read_metrics(folder / "metrics.jsonl")[-1]
    assert last["lost_learner"] >= 1 and last["lost_collector"] >= 1 and last["due"] == 0
    assert (folder / "report.json").is_file()
    more = compose("train", words(base, tmp_path))
    assert (
        fingerprint_of(more)["configuration"]
        != fingerprint_of(compose("train", words(base, tmp_path, **{"run.seed": 1})))["configuration"]
    )


def test_two_learners_survive_the_death_of_one_and_go_on_together(base, tmp_path):
    more = {"num_learners": 2, "num_inference": 0, "algorithm.batch_size": 64}
    folder = train_and_kill(words(base, tmp_path, **more), tmp_path, ("ShardActor",))
    newest = RunFolder.latest_in(folder)
    state = json.loads((newest / "trainer.json").read_text())
    parts = [newest / part_of(rank) for rank in range(2)]
    first, second = (json.loads((part / "algorithm.json").read_text()) for part in parts)
    assert first["updates"] == second["updates"] > 0 and first["config"]["batch_size"] == 32
    assert sum(slot["steps"] for slot in state["distributed"]) == state["progress"]["steps"] >= GOAL
    ours, theirs = (load_file(part / "algorithm.safetensors") for part in parts)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith("module."))
    assert read_metrics(folder / "metrics.jsonl")[-1]["lost_learner"] >= 1


def visit(said, played):
    """Join the run of this process for a few seconds, then leave it as a person does, Ctrl-C; then end the run."""
    import ray

    from vla_rl.runtime.distributed.actors import NAMESPACE, name_of

    while not played(0):
        time.sleep(0.3)
    address = ray.get_runtime_context().gcs_address
    start = [sys.executable, "-m", "vla_rl.cli", "join", "training=ray", f"address={address}"]
    here = ["env=metaworld", "env.ids=[reach-v3]", "env.num_envs=1", "env.num_workers=0"]
    try:
        for words in (here, [*here, "env.cameras=[]", "every=5"]):
            guest = subprocess.Popen(
                [*start, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            lines = []
            for line in guest.stdout:
                lines.append(line)
                if line.startswith("joined"):
                    until = time.monotonic() + 60
                    while not played(1) and time.monotonic() < until:
                        time.sleep(0.3)
                    guest.send_signal(signal.SIGINT)
            said.append((guest.wait(60), "".join(lines)))
    finally:
        ray.get(ray.get_actor(name_of("ray"), NAMESPACE).stop.remote())


def test_a_guest_joins_and_leaves_while_the_others_go_on(base, tmp_path):
    metrics, said = tmp_path / "ray" / "metrics.jsonl", []

    def played(place):
        rows = read_metrics(metrics)
        return rows[-1].get(f"collected_{place}", 0) if rows else 0

    guest = threading.Thread(target=visit, args=(said, played))
    guest.start()
    slow = {"env.adapter": "sim.waiting:WaitingEnv", "+env.inner": "sim.metaworld:MetaWorldEnv"}
    more = {"num_collectors": 1, "num_inference": 0, "launcher.guests": 1, "run.steps": 100_000}
    folder = train(words(base, tmp_path, **more, **slow, **{"+env.period_s": 0.1}))
    guest.join(60)
    (refused, why), (left, heard) = said
    assert refused == 2 and "its cameras is" in why, why
    assert left == 0 and "joined ray as collector 1" in heard and "left after" in heard, heard
    state = json.loads((RunFolder.latest_in(folder) / "trainer.json").read_text())
    host, visitor = state["distributed"]
    assert visitor["steps"] == int(heard.split("left after ")[1].split()[0]) > 0
    assert host["steps"] + visitor["steps"] == state["progress"]["steps"]


def end_once_both_played(run, metrics):
    """End ``run`` when both collectors have played and an iteration is learned, however late the second one started."""
    import ray

    from vla_rl.runtime.distributed.actors import NAMESPACE, name_of

    until, told = time.monotonic() + 240, False
    while not told and time.monotonic() < until:
        rows = read_metrics(metrics)
        told = bool(rows) and all(rows[-1].get(f"collected_{place}", 0) > GOAL / 2 for place in range(2))
        time.sleep(0.3)
    ray.get(ray.get_actor(name_of(run), NAMESPACE).stop.remote())


def test_two_learn_on_policy_from_decisions_that_others_made(tmp_path):
    base = tiny.reach_base(tmp_path / "gaussian", "gaussian_nano")
    spare = {"algorithm.warmup_steps", "algorithm.critic_updates", "demonstrations.episodes"}
    plain = [w for w in words(base, tmp_path) if w.split("=")[0] not in spare]
    more = [
        "algorithm=dppo",
        "demonstrations=none",
        "algorithm.decisions=60",
        "algorithm.epochs=2",
        "algorithm.batch_size=30",
    ]
    with pytest.raises(UserError, match="num_inference=1: collectors of DPPO run the policy themselves"):
        train([*plain, *more])
    more += ["num_inference=0", "num_learners=2", "launcher.shard=true"]
    metrics = tmp_path / "on_policy" / "metrics.jsonl"
    ender = threading.Thread(target=end_once_both_played, args=("on_policy", metrics))
    ender.start()
    folder = train([*plain, *more, "run.name=on_policy", "run.steps=100000"])
    ender.join(60)
    newest = RunFolder.latest_in(folder)
    counters, others = (
        json.loads((newest / part_of(rank) / "algorithm.json").read_text()) for rank in range(2)
    )
    assert counters["config"]["decisions"] == 30 == counters["config"]["batch_size"] * 2
    assert [counters[k] for k in ("iteration", "updates")] == [others[k] for k in ("iteration", "updates")]
    ours, theirs = (load_file(newest / part_of(rank) / "algorithm.safetensors") for rank in range(2))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith("module."))
    state = json.loads((newest / "trainer.json").read_text())
    assert (
        counters["iteration"] >= 2 and counters["steps"] >= GOAL and "approx_kl" in read_metrics(metrics)[-1]
    )
    assert all(slot["steps"] > 100 for slot in state["distributed"])
    assert sum(slot["steps"] for slot in state["distributed"]) == counters["steps"]


def test_what_does_not_go_together_is_said_before_anything_starts(base, tmp_path):
    for setting, value, match in (
        ("num_collectors", 0, "num_collectors=0"),
        ("num_learners", 3, "num_learners=3 num_collectors=2"),
        ("launcher.shard", "true", "num_learners=1 there is nobody to share with"),
        ("launcher.threads", 0, "launcher.threads=0"),
        ("run.learner", "process", "run.learner"),
        ("curriculum", "near_half", "curriculum"),
        ("teleop", "overseer", "teleop"),
    ):
        with pytest.raises(UserError, match=match):
            check_distributed(compose("train", words(base, tmp_path, **{setting: value})))


def test_a_run_that_is_resumed_has_single_settings():
    config = OmegaConf.create({"launcher": "ray"})
    with pytest.raises(UserError, match="launcher.kind=ray"):
        distributed(config)
    old = OmegaConf.create({"launcher": {"kind": "ray"}, "run": {}})
    assert distributed(old) and not distributed(OmegaConf.create({}))
    with pytest.raises(UserError, match="num_collectors=None"):
        check_distributed(old)


def test_an_address_where_nobody_is(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match="launcher=local trains in this process"):
        connect("nowhere.invalid:6379")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="needs Ray"):
        actors.connect(None)


def test_a_run_goes_on_from_what_its_learner_left(tmp_path):
    """Its checkpoint is not written anew, because it says which batches it has; any other makes them void."""

    class Trained:
        config = OmegaConf.create({"num_collectors": 2})
        algorithm = SimpleNamespace(acting_modules=dict)

        def __init__(self, run):
            self.run, self.written = run, 0

        def checkpoint(self, more):
            self.written += 1
            assert [slot["received"] for slot in more["distributed"]] == [-1, -1]

    def left(path, state):
        run = RunFolder.create(tmp_path, path, "a: 1\n")
        (run.path / "batches").mkdir()
        (run.path / "batches" / "000000000-1.journal").write_bytes(b"")
        run.save_checkpoint(
            10, lambda folder: (folder / "trainer.json").write_text(json.dumps(state)) and None
        )
        return Trained(run)

    ours = left("ours", {"distributed": [{}, {}]})
    begin_from(ours)
    assert not ours.written and list((ours.run.path / "batches").iterdir())
    local = left("local", {})
    begin_from(local)
    assert local.written == 1 and not (local.run.path / "batches").exists()
    with pytest.raises(UserError, match="begun with num_collectors=3"):
        begin_from(left("three", {"distributed": [{}, {}, {}]}))
    local.algorithm = SimpleNamespace()
    with pytest.raises(UserError, match="learns only where it acts"):
        begin_from(local)
    for trained in (ours, local):
        trained.run.close()
