"""Forgetting in recorded states: nothing at first, as much as the words have moved later, and in whose states."""

import numpy as np
import pytest
import torch
from toy import SPEC, train
from toy_tokens import ToyTokens

from vla_rl.algorithms.factory import opd
from vla_rl.algorithms.held_out import HeldOut
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE
from vla_rl.policies.action_tokens import kl
from vla_rl.policies.open_loop import OpenLoop
from vla_rl.policies.spoken import Spoken


def vector(size):
    return {"dtype": "float32", "shape": (size,), "names": None}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root, rng = tmp_path_factory.mktemp("held_out") / "set", np.random.default_rng(0)
    features = {STATE: vector(4), ENV_STATE: vector(2), "action": vector(2)}
    dataset = LeRobotDataset.create("local/held_out", 20, features, root=root, use_videos=False)
    for length in (30, 50):
        for _ in range(length):
            parts = {key: rng.normal(size=f["shape"]).astype(np.float32) for key, f in features.items()}
            dataset.add_frame(parts | {"task": "reach"})
        dataset.save_episode()
    dataset.finalize()
    return root


def test_how_far_the_words_have_moved(recorded):
    student = Spoken(ToyTokens(updates=100))
    held_out = HeldOut(student, [recorded], states=70)
    assert len(held_out) == 70 and float(held_out.moved()) == pytest.approx(0)
    with torch.no_grad():
        for weight in student.network.parameters():
            weight += 0.05 * torch.randn_like(weight)
    there, here = (
        n.logits(held_out.conditions, held_out.words).log_softmax(-1)
        for n in (student.head.network, student.network)
    )
    assert float(held_out.moved()) == pytest.approx(float(kl(there, here).mean()), rel=1e-5)
    assert float(held_out.moved()) > 0.01


def test_a_run_of_distillation_reports_it(recorded):
    settings = {"decisions": 64, "batch_size": 32, "hidden": [16], "observation_keys": [STATE, ENV_STATE]}
    student, teacher = ToyTokens(updates=100), ToyTokens(bias=0.0, updates=100)
    algorithm = opd(
        OpenLoop(student, 4), SPEC, 16, teacher=teacher, held_out=str(recorded), actor_lr=1e-2, **settings
    )
    metrics = train(algorithm, 3000)
    assert metrics[0]["forgotten"] == pytest.approx(0, abs=1e-6) and metrics[-1]["forgotten"] > 0.001


def test_rehearsal_holds_a_student_to_what_it_said(recorded):
    settings = {"decisions": 64, "batch_size": 32, "hidden": [16], "observation_keys": [STATE, ENV_STATE]}
    forgotten, learned = [], []
    for weight in (0.0, 1.0):
        student, teacher = ToyTokens(updates=100), ToyTokens(bias=0.0, updates=100)
        kept = {"rehearsal": [str(recorded), str(recorded)], "rehearsal_weight": weight}
        algorithm = opd(OpenLoop(student, 4), SPEC, 16, teacher=teacher, actor_lr=3e-3, **kept, **settings)
        assert len(algorithm.rehearsal) == 160, "80 steps of each"
        metrics = train(algorithm, 3000)
        assert metrics[0]["rehearsal_kl"] == pytest.approx(0, abs=1e-5)
        forgotten.append(float(algorithm.rehearsal.moved()))
        learned.append(float(metrics[-1]["reverse_kl"] / metrics[0]["reverse_kl"]))
    assert forgotten[1] < 0.4 * forgotten[0] and max(learned) < 0.5, (forgotten, learned)


def test_bad_input(recorded, tmp_path):
    student = Spoken(ToyTokens(updates=1))
    with pytest.raises(UserError, match="not a LeRobotDataset"):
        HeldOut(student, [tmp_path])
    with pytest.raises(UserError, match="held_out_states=0"):
        HeldOut(student, [recorded], states=0)
    with pytest.raises(UserError, match="rehearsal_states=0"):
        HeldOut(student, [recorded], states=0, setting="rehearsal")
    asked = {"rehearsal": str(recorded), "rehearsal_batch": 0, "hidden": [16], "observation_keys": [STATE]}
    with pytest.raises(UserError, match="rehearsal_batch=0"):
        opd(OpenLoop(ToyTokens(updates=1), 4), SPEC, 2, teacher=ToyTokens(updates=1), **asked)
