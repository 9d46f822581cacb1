"""Benchmarks made of stages: what is asked for, and in which order it is done."""

import pytest
from omegaconf import OmegaConf

from vla_rl.errors import UserError
from vla_rl.runtime.stages import chosen, fill


def done_for(**settings):
    """What ``fill`` prepares, trains and writes, in order."""
    known = {
        "tasks": {"push": {}, "pull": {}},
        "runs": {"dppo": {}, "dsrl": {}},
        "only": None,
        "algorithms": None,
    }
    config, done = OmegaConf.create(known | {"seeds": [0]} | settings), []
    fill(
        config,
        lambda _, name: done.append(name),
        lambda _, *run: done.append(run),
        lambda _: done.append("table"),
    )
    return done


def test_a_table_is_written_after_every_run():
    run = [("push", "dsrl", 3), "table"]
    assert done_for(only=["push"], algorithms=["dsrl"], seeds=[3]) == ["push", *run, "table"]


def test_without_seeds_tasks_are_prepared_and_nothing_is_trained():
    assert done_for(seeds=[]) == ["push", "pull", "table"]


def test_what_is_not_there_and_nothing_at_all_are_refused():
    with pytest.raises(UserError, match="only=pul: did you mean pull"):
        chosen("only", ["pul"], ["push", "pull"])
    with pytest.raises(
        UserError, match=r"algorithms=\[\]: nothing to do; name some of dppo, dsrl, or null for all"
    ):
        done_for(algorithms=[])
    assert chosen("only", None, ["push", "pull"]) == ["push", "pull"]
