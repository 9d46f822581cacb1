"""A collector that comes and goes: a robot that joins a training which runs already, for as long as it is there.

A run keeps ``launcher.guests`` places for them. A place is lent for ``LEASE`` seconds and lent again with every sign of life, so
that one whose machine has gone is free for the next.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.runtime.distributed.actors import RayLearner, asked, connect, name_of
from vla_rl.runtime.distributed.collector import DistributedCollector, Unreachable
from vla_rl.runtime.distributed.driver import fingerprint_of

RENEW = 10.0
"""Seconds between two signs of life."""

LEAVE = (signal.SIGINT, signal.SIGTERM)
"""Signals that tell a guest to leave."""

SAME = ("state_dim", "env_state_dim", "action_low", "action_high", "cameras")
"""What an environment has to share with those that a run was begun with: its policy's inputs and outputs."""


def check_same(here: EnvSpec, there: EnvSpec) -> None:
    """Refuse an environment whose observations or actions are not those that the policy learns with.

    Raises:
        UserError: naming what differs, with both values.
    """
    for name in SAME:
        mine, wanted = getattr(here, name), getattr(there, name)
        if mine != wanted:
            raise UserError(
                f"{here.id} cannot join: its {name} is {mine}, the run's environments ({there.id}) have {wanted}"
            )


def join(config: Any) -> int:
    """Play for the run until it ends, ``config.steps`` are over or a person interrupts; returns this collector's steps.

    Args:
        config: ``configs/join.yaml``.

    Raises:
        UserError: no such run or cluster, other code, an environment that does not fit, or no place.
    """
    if not config.training:
        raise UserError("training=NAME: which one to join (the name of its run folder)")
    ray, started = connect(config.address)
    try:
        try:
            handle = ray.get_actor(name_of(config.training))
        except ValueError as error:
            raise UserError(
                f"training={config.training}: no such training in the Ray cluster at {config.address}"
            ) from error
        try:
            return _play(ray, handle, config)
        except Unreachable as error:
            raise UserError(
                f"the learner of {config.training} does not answer ({error}): is it starting still?"
            ) from error
    finally:
        if started:
            ray.shutdown()


def _play(ray: Any, handle: Any, config: Any) -> int:
    from omegaconf import OmegaConf

    from vla_rl.config import build
    from vla_rl.rewards.build import environment_settings, rewarded

    invited = asked(ray, handle.invite.remote())
    settings, plain = invited["settings"], dict(invited["config"])
    plain["env"] = OmegaConf.to_container(config.env, resolve=True)
    if config.policy_path:
        plain["policy"] = plain["policy"] | {"path": config.policy_path}
    node: Any = OmegaConf.create(plain)
    env: Any = rewarded(build(node.env, **environment_settings(node)), node.get("reward"))
    try:
        check_same(env.env_spec, settings.env)
        if env.num_envs > settings.rows:
            raise UserError(f"env.num_envs={env.num_envs}: a place in this run has {settings.rows} rows")
        mine = settings.fingerprint | {"code": fingerprint_of(node)["code"]}
        place = asked(ray, handle.admit.remote(mine))
        over, leaving = threading.Event(), threading.Event()
        threading.Thread(target=_stay, args=(ray, handle, place, over), daemon=True).start()
        steps = 0
        try:
            collector = DistributedCollector(
                place,
                plain,
                RayLearner(handle, place),
                mine,
                env=env,
                every=int(config.every),
                steps=config.steps,
                leaving=leaving,
            )
            with _asked_to_leave(leaving):
                print(f"joined {config.training} as collector {place}: Ctrl-C leaves", flush=True)
                steps = collector.run()
        except KeyboardInterrupt:
            print("left at once", flush=True)
        else:
            print(f"left after {steps} steps", flush=True)
        finally:
            over.set()
            with contextlib.suppress(Unreachable):
                asked(ray, handle.leave.remote(place))
        return steps
    finally:
        env.close()


@contextlib.contextmanager
def _asked_to_leave(leaving: threading.Event) -> Iterator[None]:
    """The first signal within sets ``leaving``: raised in the middle of a step, it would lose that step. The second interrupts."""

    def tell(number: int, frame: Any) -> None:
        if leaving.is_set():
            raise KeyboardInterrupt
        leaving.set()
        print("leaving; once more: at once, without the steps that the learner does not have yet", flush=True)

    before = {number: signal.signal(number, tell) for number in LEAVE}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stay(ray: Any, handle: Any, place: int, over: threading.Event) -> None:
    """Signs of life; a learner that is on its way back is told of the place by the collector's own calls."""
    while not over.wait(RENEW):
        with contextlib.suppress(Unreachable):
            asked(ray, handle.renew.remote(place))
