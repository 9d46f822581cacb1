"""The learner that several collectors feed, without Ray: every frame once, whatever dies, and only from those who fit."""

import threading
import time
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from reach import Reach, Walk

from vla_rl.errors import UserError
from vla_rl.learner.process import weights
from vla_rl.runtime.distributed import collector as collector_module
from vla_rl.runtime.distributed.collector import DistributedCollector, Unreachable
from vla_rl.runtime.distributed.learner import DistributedLearner
from vla_rl.runtime.distributed.settings import Settings
from vla_rl.runtime.run_folder import RunFolder

ALGORITHM = {
    "_target_": "vla_rl.algorithms.factory.residual_td3",
    "scale": 0.5,
    "warmup_steps": 0,  # at its end the steps in flight become closing frames: here each has to be found again
    "critic_updates": 10,
    "hidden": [16, 16],
    "critics": 2,
    "batch_size": 16,
    "capacity": 4000,
}
MINE = {"version": "1", "code": "abc", "configuration": "def"}


def settings(tmp_path, **more):
    plain = {
        "algorithm": ALGORITHM,
        "base": Walk(0.05).spec,
        "env": Reach(2).env_spec,
        "rows": 2,
        "collectors": 2,
        "run": str(tmp_path),
        "steps": 600,
        "fingerprint": MINE,
        "publish": 0.1,
    }
    return Settings(**(plain | more))


def collector(index, learner, **more):
    config = {"algorithm": ALGORITHM, "policy": {}, "run": {"seed": 0, "threads": 1}, "num_collectors": 2}
    return DistributedCollector(index, config, learner, MINE, base=Walk(0.05), env=Reach(2), **more)


def stored_in(learner, row):
    """Frames in replay that are steps, in one row."""
    total = 0
    for buffer in (learner.learner.experience.warmup, learner.learner.experience.online):
        index = row * buffer.length + torch.arange(int(buffer.filled[row]))
        total += int((~buffer.final[index]).sum())
    return total


def stored(learner):
    """The same in the rows of each collector."""
    return [sum(stored_in(learner, row) for row in learner._rows(place).tolist()) for place in range(2)]


class Forgetful:
    """A learner whose answers are lost now and then, after it has taken what it was given."""

    def __init__(self, learner, every=3):
        self.learner, self.every, self.calls = learner, every, 0

    def __getattr__(self, name):
        def call(*arguments):
            answer = getattr(self.learner, name)(*arguments)
            self.calls += 1
            if self.calls % self.every == 0:
                raise Unreachable("lost on the way")
            return answer

        return call


def test_two_collectors_fill_one_replay_and_follow_its_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(collector_module, "PAUSE", 0.005)
    learner = DistributedLearner(settings(tmp_path))
    each = [collector(i, learner) for i in range(2)]
    threads = [threading.Thread(target=c.run) for c in each]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    status = learner.status()
    assert status["steps"] >= 600 and sum(status["collected"].values()) == status["steps"]
    assert learner.settle(60.0) == 0 and learner.status()["updates"] > 50
    assert stored(learner) == list(status["collected"].values()), (
        "interrupted episodes aside, each step is there once"
    )
    time.sleep(0.5)
    each[0]._heard(learner.hail())
    theirs = weights(learner.learner)
    assert all(torch.equal(value, theirs[name]) for name, value in weights(each[0].algorithm).items())
    assert status["metrics"]["staleness"] >= 0 and status["episodes"] == len(status["recent"])


class Watched(Reach):
    """An environment with something to say: a robot's stops, and a critic's audit."""

    trusted = False

    def __init__(self, rows):
        super().__init__(rows)
        self.stops = []

    def step(self, actions):
        self.stops.append("too fast")
        self.halt = "exploited" if len(self.stops) > 50 else None
        return super().step(actions)

    def metrics(self):
        return {"believed": 0.25}


def test_what_environments_say_reaches_whoever_asks(tmp_path):
    learner, env = DistributedLearner(settings(tmp_path, steps=200)), Watched(2)
    config = {"algorithm": ALGORITHM, "policy": {}, "run": {"seed": 0, "threads": 1}, "num_collectors": 2}
    DistributedCollector(1, config, learner, MINE, base=Walk(0.05), env=env).run()
    status = learner.status()
    assert status["told"] == {1: {"metrics": {"believed": 0.25}, "halt": "exploited", "trusted": False}}
    assert status["safety_stops"] == len(env.stops) >= 100
    again = DistributedLearner(settings(tmp_path, steps=200))
    assert again.status()["safety_stops"] == len(env.stops), "journalled with the frames, counted once"
    assert again.status()["told"] == status["told"]


def test_weights_are_had_while_updates_are_made(tmp_path):
    learner, had = DistributedLearner(settings(tmp_path)), []
    with learner._lock:  # as a burst of updates has it
        asking = threading.Thread(target=lambda: had.extend(learner.weights_since(-1)))
        asking.start()
        asking.join(30)
    assert not asking.is_alive() and len(had) == 1


def test_versions_are_as_far_apart_as_asked(tmp_path):
    learner = DistributedLearner(settings(tmp_path, publish=3600.0, steps=200))
    first = learner.published.version
    collector(0, learner).run()
    assert learner.settle(60.0) == 0 and learner.status()["updates"] > 10
    time.sleep(0.3)
    assert learner.published.version == first


def test_weights_are_fetched_while_the_next_batch_is_played(tmp_path):
    learner, fetched_by = DistributedLearner(settings(tmp_path, publish=0.0, steps=200)), []

    class Watched:
        def __getattr__(self, name):
            return getattr(learner, name)

        def weights_since(self, version):
            fetched_by.append(threading.current_thread().name)
            return learner.weights_since(version)

    player = collector(0, Watched())
    player.run()
    beside = [name.startswith("sender") for name in fetched_by]
    assert beside[:3] == [False, True, True]  # the first when joining
    assert player.followed.version > learner.published.first
    assert learner.settle(60.0) == 0  # an update under way would not survive the interpreter


def test_an_answer_that_is_lost_counts_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(collector_module, "PAUSE", 0.005)
    learner = DistributedLearner(settings(tmp_path, steps=200))
    collector(0, Forgetful(learner)).run()
    status = learner.status()
    assert status["metrics"]["repeated"] > 0
    assert stored(learner)[0] == status["collected"][0] == status["steps"]


@pytest.mark.parametrize("waits", (False, True))
def test_whoever_leaves_in_the_middle_of_a_step_leaves_no_step_behind(tmp_path, monkeypatch, waits):
    monkeypatch.setattr(collector_module, "PAUSE", 0.005)
    learner, leaving = (
        DistributedLearner(settings(tmp_path, steps=10_000, max_due=0 if waits else 100)),
        threading.Event(),
    )
    player = collector(0, learner, leaving=leaving)
    step, played = player.env.step_wait, []

    def step_wait():
        played.append(1)
        if len(played) == 23 and not waits:
            leaving.set()
        return step()

    monkeypatch.setattr(player.env, "step_wait", step_wait)
    if waits:
        threading.Timer(0.5, leaving.set).start()
    assert player.run() == 2 * len(played) == learner.status()["collected"][0] == stored(learner)[0]
    assert waits or len(played) == 23


def test_a_new_learner_goes_on_where_the_dead_one_was(tmp_path, monkeypatch):
    """From a checkpoint and the journal after it; the collector, which lives on, notices nothing."""
    monkeypatch.setattr(collector_module, "PAUSE", 0.005)

    class Changing:
        learner = DistributedLearner(settings(tmp_path, steps=10_000))

        def __getattr__(self, name):
            return getattr(type(self).learner, name)

    run = RunFolder.create(tmp_path, "r", "a: 1\n")
    Changing.learner = first = DistributedLearner(settings(run.path, steps=500))
    player = collector(0, Changing())
    joined = player.learner.join(0, MINE)
    player.generation = joined["generation"]
    from vla_rl.rollout.collector import Collector

    play = Collector(player.env, player.algorithm.policy, player._scene, sink=player._keep)
    play.begin()

    def go(batches):
        for _ in range(batches):
            for _ in range(5):
                play.step()
            player._send()
            player._confirm()

    go(6)

    def write(folder):
        import json

        said = first.save(str(folder / "algorithm"))
        state = {
            "progress": {"episodes": 0, "recent": [], "seconds": 1.0},
            "distributed": list(said["distributed"].values()),
        }
        (folder / "trainer.json").write_text(json.dumps(state))

    run.save_checkpoint(first.learner.steps, write)
    go(7)
    Changing.learner = second = DistributedLearner(settings(run.path, steps=500))
    assert second.learner.steps == first.learner.steps == 130 and second.recovered == 7
    assert second.published.version > first.published.version, "numbers of versions are never used twice"
    go(4)
    assert second.learner.steps == 170 and stored(second)[0] == second.slots[0].steps == 170
    third = DistributedLearner(settings(run.path, steps=500))
    assert third.learner.steps == 170 and stored(third)[0] == 170
    run.close()


def test_a_place_that_is_given_anew_closes_what_was_in_flight(tmp_path):
    learner = DistributedLearner(settings(tmp_path))
    first = collector(0, learner)
    first.generation = learner.join(0, MINE)["generation"]
    from vla_rl.rollout.collector import Collector

    play = Collector(first.env, first.algorithm.policy, first._scene, sink=first._keep)
    play.begin()
    for _ in range(3):
        play.step()
    first._send()
    first._confirm()
    assert learner.join(0, MINE)["generation"] == 2
    buffer = learner.learner.experience.online
    newest = learner._rows(0) * buffer.length + (buffer.pointer[learner._rows(0)] - 1) % buffer.length
    assert buffer.final[newest].all()
    with pytest.raises(UserError, match="given to another"):
        play.step()
        first._send()
        first._confirm()


def test_only_those_who_fit_may_join(tmp_path):
    learner = DistributedLearner(settings(tmp_path))
    with pytest.raises(UserError, match="code zzz wants to join a learner with code abc"):
        learner.join(0, MINE | {"code": "zzz"})
    with pytest.raises(UserError, match="no place 7"):
        learner.join(7, MINE)
    generation = learner.join(0, MINE)["generation"]
    with pytest.raises(UserError, match="sends batch 3 after -1"):
        learner.push(0, generation, 3, b"")


def test_it_waits_when_the_learner_is_behind(tmp_path):
    learner = DistributedLearner(settings(tmp_path, max_due=-1))
    assert learner.hail()["wait"] and learner.hail(0.1)["wait"]
    caught_up = threading.Timer(
        0.1, lambda: setattr(learner, "settings", replace(learner.settings, max_due=10))
    )
    caught_up.start()
    assert not learner.hail(60.0)["wait"]  # told as soon as it is so
    learner.settings = replace(learner.settings, max_due=-1)
    threading.Timer(0.1, learner.stop).start()
    assert learner.hail(60.0)["stop"]


def test_what_ends_learning_is_told(tmp_path):
    learner = DistributedLearner(settings(tmp_path))
    learner.failure = UserError("the loss is NaN")
    for call in (learner.status, learner.hail):
        with pytest.raises(UserError, match="NaN"):
            call()


def test_algorithms_that_learn_where_they_act_are_refused(tmp_path):
    with pytest.raises(UserError, match="launcher=local"):
        DistributedLearner(
            settings(
                tmp_path,
                algorithm=OmegaConf.to_container(
                    OmegaConf.create({"_target_": "vla_rl.algorithms.factory.filtered_bc"})
                ),
            )
        )
