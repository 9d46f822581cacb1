"""The task of an episode by how well each goes: hand-computed shares, state, refusals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.errors import UserError
from vla_rl.rollout.curriculum import RULES, Curriculum, CurriculumConfig, curriculum_of


class Env:
    task_choice = True

    class env_spec:
        id = "many"

    def __init__(self, tasks=("a", "b", "c")):
        self.tasks = list(tasks)

    def own_task_ids(self):
        return [*self.tasks, *self.tasks]


def played(rule, **results):
    curriculum = Curriculum(CurriculumConfig(rule=rule, share=0.0, temperature=0.2, least=2), Env(), seed=0)
    for task, outcomes in results.items():
        for success in outcomes:
            curriculum.ended(task, bool(success))
    return curriculum


def test_shares_are_those_of_the_formulas():
    outcomes = {"a": [0, 0, 0, 0], "b": [1, 0, 1, 0], "c": [1, 1, 1, 0]}
    lowest = [math.exp((0.5 - s) / 0.2) for s in (0.0, 0.5, 0.75)]
    near = [math.exp(-abs(s - 0.5) / 0.2) for s in (0.0, 0.5, 0.75)]
    assert np.allclose(played("lowest", **outcomes).shares(), np.array(lowest) / sum(lowest))
    assert np.allclose(played("near_half", **outcomes).shares(), np.array(near) / sum(near))
    assert np.allclose(played("uniform", **outcomes).shares(), 1 / 3)


def test_the_published_rule_favours_what_nobody_can_do_and_ours_what_teaches():
    outcomes = {"a": [0] * 9, "b": [0, 1] * 4, "c": [1] * 9}
    assert played("lowest", **outcomes).shares().argmax() == 0
    assert played("near_half", **outcomes).shares().argmax() == 1


@given(
    st.sampled_from(RULES),
    st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60),
    st.floats(0, 0.33),
)
def test_shares_are_a_distribution_that_forgets_no_task(rule, episodes, share):
    curriculum = Curriculum(CurriculumConfig(rule=rule, share=share), Env(), seed=0)
    for task, success in episodes:
        curriculum.ended(task, success)
    shares = curriculum.shares()
    assert np.isclose(shares.sum(), 1) and (shares >= share - 1e-9).all()


def test_it_goes_on_where_it_was_saved(tmp_path):
    first = played("near_half", a=[0, 0, 1], c=[1, 1])
    first.choose([0, 1])
    first.save(tmp_path)
    second = Curriculum(first.config, Env(), seed=99)
    second.load(tmp_path)
    assert second.metrics() == first.metrics() and second.begun == first.begun
    assert [first.choose(range(8)) for _ in range(3)] == [second.choose(range(8)) for _ in range(3)]


def test_refusals():
    assert curriculum_of({"rule": None}, Env(), 0) is None
    for settings, words in (
        ({"rule": "near_haf"}, "near_half"),
        ({"rule": "lowest", "temprature": 1.0}, "temperature"),
        ({"rule": "lowest", "temperature": 0.0}, "temperature=0"),
        ({"rule": "lowest", "share": 0.5}, "share=0.5"),
        ({"rule": "lowest", "least": 99}, "least=99"),
    ):
        with pytest.raises(UserError, match=words):
            curriculum_of(settings, Env(), 0)
    with pytest.raises(UserError, match="one task, a"):
        curriculum_of({"rule": "lowest"}, Env("a"), 0)
    fixed = Env()
    fixed.task_choice = False
    with pytest.raises(UserError, match="cannot let its rows change"):
        curriculum_of({"rule": "lowest"}, fixed, 0)
