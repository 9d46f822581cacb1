"""A learner in a process of its own loses nothing, whoever is killed."""

import os
import signal
import time

import pytest
import torch
from omegaconf import OmegaConf
from reach import Reach, Walk

import vla_rl.train as train_module
from vla_rl.algorithms.filtered_bc import FilteredBC, FilteredBCConfig
from vla_rl.algorithms.residual_td3 import ResidualTD3, ResidualTD3Config
from vla_rl.errors import NonFiniteError, UserError
from vla_rl.learner.remote import RemoteLearner
from vla_rl.rollout.collector import Collector
from vla_rl.train import Trainer, open_run

ALGORITHM = {
    "scale": 0.5,
    "warmup_steps": 60,
    "critic_updates": 10,
    "hidden": [16, 16],
    "critics": 2,
    "batch_size": 16,
    "capacity": 4000,
}
TARGET = {"_target_": "vla_rl.algorithms.factory.residual_td3"}
RUN = {
    "name": "r", "seed": 3, "steps": 400, "minutes": None, "checkpoint_every": 100, "keep_checkpoints": 2,
    "log_every": 50, "eval_every": 0, "eval_episodes": 4, "eval_seed": 9, "threads": 1, "learner": "process",
}  # fmt: skip


@pytest.fixture(autouse=True)
def walking_base(monkeypatch):
    monkeypatch.setattr(train_module, "load_base", lambda config, candidates=1: Walk(0.05))


def config_of(folder, **run):
    parts = {"policy": {}, "env": {}, "demonstrations": {"episodes": 0}, "algorithm": TARGET | ALGORITHM}
    return OmegaConf.create(parts | {"run": RUN | {"root": str(folder)} | run})


def remote(folder, newest=lambda: None, **settings):
    env = Reach(2)
    base = Walk(0.05)
    local = ResidualTD3(ResidualTD3Config(**ALGORITHM), base, env.env_spec, 2)
    given = TARGET | ALGORITHM | settings
    return env, RemoteLearner(local, given, env.env_spec, 2, folder / "journal", newest, every=0.2)


def kill(learner):
    os.kill(learner.link.process.pid, signal.SIGKILL)
    learner.link.process.join()


def test_training_goes_on_when_its_learner_is_killed_and_every_step_counts(tmp_path):
    config = config_of(tmp_path)
    run, _ = open_run(config, None, "")
    trainer = Trainer(config, run, Reach(4))
    learner = trainer.algorithm
    killed = []

    def murder(progress, metrics):
        if progress.steps >= 240 and not killed:
            killed.append(learner.link.process.pid)
            kill(learner)

    trainer.on_progress = murder
    trainer.learn()
    assert killed and len(learner.deaths) == 1
    assert learner.link.process.pid != killed[0]
    learner.close()
    # What the last checkpoint holds is what an inline learner would have seen and done.
    inline = ResidualTD3(ResidualTD3Config(**ALGORITHM), Walk(0.05), Reach(4).env_spec, 4)
    inline.load(run.latest_checkpoint() / "algorithm")
    assert inline.steps == 400 and inline.updates == 10 + 340
    stored = [b for b in (inline.experience.warmup, inline.experience.online) if len(b)]
    steps = sum(int((~b.final[b.starts()]).sum()) for b in stored)
    assert (
        396 <= steps <= 400
    )  # the end of the warm-up turns a step of each row in flight into its closing frame
    # The weights acting here are the learner's.
    for name, module in learner.local.acting_modules().items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, inline.acting_modules()[name].state_dict()[key])
    run.close()


def test_an_actor_that_is_killed_finds_its_steps_again(tmp_path):
    config = config_of(tmp_path, steps=260)

    class Power(BaseException):
        pass

    def cut(progress, metrics):
        if progress.steps >= 180:
            raise Power

    run, _ = open_run(config, None, "")
    trainer = Trainer(config, run, Reach(4), cut)
    with pytest.raises(Power):
        trainer.learn()
    kill(trainer.algorithm)
    trainer.close()
    run.close()
    run, checkpoint = open_run(config, str(tmp_path / "r"), "")
    again = Trainer(config, run, Reach(4))
    again.restore(checkpoint)
    assert checkpoint.name.endswith("100") and again.progress.steps == 180
    assert again.progress.episodes == len(again.recent) > 0
    again.learn()
    assert again.progress.steps == 260
    assert again.algorithm.local.steps == 260 and again.algorithm.updates == 10 + 200
    again.close()
    run.close()


def test_a_learner_that_fails_says_why_and_is_not_started_again(tmp_path):
    env, learner = remote(tmp_path, capacity=1)  # holds no episode
    collector = Collector(env, learner.policy, lambda n, _: n, sink=learner.observe)
    try:
        with pytest.raises((UserError, NonFiniteError), match="the learner stopped: .*capacity"):
            collector.begin()
            for _ in range(40):
                collector.step()
            learner.settle()
        assert not learner.deaths
    finally:
        learner.close()


def test_a_learner_that_keeps_dying_is_given_up(tmp_path):
    _, learner = remote(tmp_path)
    try:
        with pytest.raises(UserError, match="died 4 times"):
            for _ in range(5):
                kill(learner)
                while not learner.link.dead:
                    time.sleep(0.01)
                learner.update()
    finally:
        learner.close()


def test_acting_goes_on_while_nobody_reads(tmp_path):
    env, learner = remote(tmp_path)
    os.kill(learner.link.process.pid, signal.SIGSTOP)
    try:
        collector = Collector(env, learner.policy, lambda n, _: n, sink=learner.observe)
        collector.begin()
        for _ in range(400):  # far more than a pipe holds
            collector.step()
        assert learner.steps == 800
    finally:
        os.kill(learner.link.process.pid, signal.SIGCONT)
        learner.close()


def test_only_algorithms_that_can(tmp_path):
    env = Reach(2)
    local = FilteredBC(FilteredBCConfig(), Walk(0.05), env.env_spec, 2)
    with pytest.raises(UserError, match="run.learner=process: FilteredBC"):
        RemoteLearner(local, {}, env.env_spec, 2, tmp_path, lambda: None)
    config = config_of(tmp_path, learner="there")
    with pytest.raises(UserError, match="run.learner=there"):
        Trainer(config, None, env)  # type: ignore[arg-type]
