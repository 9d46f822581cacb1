"""``vla-rl bench scaling``: the cost of each item of distributed training here, and which part of a larger layout is full first.

Every cost is measured through the classes that a run on Ray is made of, in one process, one after the other: a control
step, a question to the base policy, a batch of frames packed and taken (journalled, in replay), an update, a version
of the weights. A layout's load on a part is its demand times the cost, divided among those that share it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from vla_rl.bench.scaling_plan import Costs, page, plan
from vla_rl.config import build, compose
from vla_rl.policies.load import load_base
from vla_rl.policies.open_loop import take
from vla_rl.runtime.distributed.collector import DistributedCollector
from vla_rl.runtime.distributed.learner import DistributedLearner
from vla_rl.runtime.distributed.settings import Settings
from vla_rl.runtime.metrics import write_json, write_text
from vla_rl.runtime.threads import set_threads

MINE = {"version": "here"}


def run(overrides: list[str]) -> int:
    """Measure, plan, write ``results.json`` and ``README.md``."""
    config = compose("bench_scaling", overrides)
    set_threads(int(config.threads))
    train = compose("train", [*config.train, f"run.threads={config.threads}"])
    costs = measured(train, config)
    layouts = {name: plan(costs, **layout) for name, layout in config.layouts.items()}
    out = Path(config.out)
    write_json(out / "results.json", {"costs": costs.__dict__, "layouts": layouts})
    text = page(costs, layouts)
    write_text(out / "README.md", text)
    print(text)
    return 0


class _Clock:
    """Seconds spent in calls that are wrapped."""

    def __init__(self) -> None:
        self.seconds = self.calls = 0.0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - began
                self.calls += 1

        return timed


def measured(train: Any, config: Any) -> Costs:
    """Play ``config.steps`` control steps and make ``config.updates`` updates of the training ``train``."""
    plain: Any = OmegaConf.to_container(train, resolve=True)
    plain["algorithm"]["warmup_steps"] = int(config.steps) + 100  # no update beside what is timed
    env: Any = build(train.env)
    base: Any = load_base(train.policy)
    _question(base, env, 1)  # what is set up at the first picture and the first pass
    with tempfile.TemporaryDirectory() as folder:
        steps = int(config.steps)
        settings = Settings(
            plain["algorithm"], base.spec, env.env_spec, env.num_envs, 1, folder, 10**9, MINE, max_due=10**9
        )
        learner = DistributedLearner(settings)
        physics, asking, looking, beginning, pushing, packing = (_Clock() for _ in range(6))
        env.look, env.reset = looking.around(env.look), beginning.around(env.reset)
        env.step_async, env.step_wait = physics.around(env.step_async), physics.around(env.step_wait)
        base.base.act = asking.around(base.base.act)
        taken: Any = _Taken(learner, pushing)
        player = DistributedCollector(0, plain, taken, MINE, base=base, env=env, steps=steps)
        player._message = packing.around(player._message)
        began = time.perf_counter()
        played = player.run()
        # Batches are taken in another thread, beside all this.
        parts = (physics, asking, looking, beginning, packing)
        acting = time.perf_counter() - began - sum(clock.seconds for clock in parts)
        look, reset = looking.seconds / max(1.0, looking.calls), beginning.seconds / played
        update = _seconds(learner.learner.update, int(config.updates))
        publish = _version(learner, 10)
        version = sum(map(len, learner.weights_since(learner.published.version - 1)))
        questions = {int(size): _question(base, env, int(size)) for size in config.batches}
        player.close()
    return Costs(
        step=physics.seconds / played,
        look=look,
        reset=reset,
        acting=max(0.0, acting) / played,
        pack=packing.seconds / played,
        take=pushing.seconds / played,
        bytes=taken.bytes / played,
        update=update,
        utd=float(plain["algorithm"]["utd"]),
        publish=publish,
        delta=float(version),
        horizon=int(plain["policy"]["horizon"] or base.horizon),
        question=questions,
        picture=int(sum(3 * h * w for h, w in env.env_spec.cameras.values())),
    )


class _Taken:
    """A learner whose ``push`` is timed and weighed."""

    def __init__(self, learner: DistributedLearner, clock: _Clock) -> None:
        self.learner, self.bytes = learner, 0
        self._push = clock.around(learner.push)

    def push(self, collector: int, generation: int, number: int, message: bytes) -> dict[str, Any]:
        self.bytes += len(message)
        return self._push(collector, generation, number, message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learner, name)


def _seconds(call: Callable[[], Any], times: int) -> float:
    call()
    began = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - began) / times


def _version(learner: DistributedLearner, times: int) -> float:
    """Seconds that publishing takes, an update after the one before."""
    clock = _Clock()
    publish = clock.around(learner._publish)
    for _ in range(times):
        learner.learner.update()
        publish()
    return clock.seconds / times


def _question(base: Any, env: Any, rows: int) -> float:
    """Seconds of one forward pass of the base policy for ``rows`` rows."""
    observation, _ = env.reset(seed=1)
    pictures = env.look(torch.arange(env.num_envs)) if env.env_spec.cameras else {}
    seen = take(
        {**observation, **pictures},
        torch.zeros(rows, dtype=torch.long),
        base.spec.state_keys + base.spec.image_keys,
    )
    state = base.base.initial_state(rows)
    return _seconds(lambda: base.base.act(seen, state), 5)
