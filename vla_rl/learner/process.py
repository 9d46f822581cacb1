"""What runs in the learner's process: take frames, update as often as they earn, send weights now and then."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.algorithms.base import make_updates
from vla_rl.algorithms.sharding import whole
from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.learner.messages import pack, unflatten, unpack
from vla_rl.policies.base import Observation, PolicySpec

BURST = 8
"""Updates between two looks at what has come."""


class Absent:
    """Stands for the base policy where nobody acts: its spec, without its weights.

    Args:
        spec: of the base.
    """

    def __init__(self, spec: PolicySpec) -> None:
        self.spec = spec

    def initial_state(self, batch_size: int) -> TensorDict:
        """Never needed."""
        raise RuntimeError("the learner's process does not act")

    def needs_images(self, state: TensorDict) -> Tensor:
        """Never needed."""
        raise RuntimeError("the learner's process does not act")

    def act(
        self, observation: Observation, state: TensorDict, *, deterministic: bool = False
    ) -> tuple[TensorDict, TensorDict]:
        """Never needed."""
        raise RuntimeError("the learner's process does not act")


def serve(
    link: Connection,
    algorithm: Any,
    base: PolicySpec,
    env_spec: EnvSpec,
    num_envs: int,
    seed: int,
    threads: int,
    every: float,
    nice: int,
) -> None:
    """Run until the other end closes.

    Args:
        link: to the actor.
        algorithm: its configuration (plain containers).
        base: spec of the frozen base.
        env_spec: of the environment.
        num_envs: its rows.
        seed: of everything random here.
        threads: torch threads.
        every: seconds between weights.
        nice: added to the process's niceness: acting comes first.
    """
    from omegaconf import OmegaConf

    from vla_rl.config import build
    from vla_rl.runtime.seeding import seed_everything
    from vla_rl.runtime.threads import set_threads

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the actor decides, and closes the link
    set_threads(threads)
    with contextlib.suppress(OSError):
        os.nice(nice)
    try:
        seed_everything(seed)
        learner = build(OmegaConf.create(algorithm), base=Absent(base), env_spec=env_spec, num_envs=num_envs)
        link.send_bytes(pack("ready"))
        _Loop(link, learner, every).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        with contextlib.suppress(OSError):
            link.send_bytes(
                pack("failed", error=type(error).__name__, text=str(error), trace=traceback.format_exc())
            )


class _Loop:
    def __init__(self, link: Connection, learner: Any, every: float) -> None:
        self.link, self.learner, self.every = link, learner, every
        self.sent, self.sent_updates = 0.0, -1
        self.metrics: dict[str, float] = {}

    def run(self) -> None:
        while True:
            due = self.learner.updates_due()
            if self.link.poll(0 if due else 0.1 * self.every):
                self._take(self.link.recv_bytes())
                continue
            self._update(min(due, BURST))
            now = time.monotonic()
            idle = due <= BURST and self.sent_updates != self.learner.updates
            if now - self.sent > self.every or (idle and now - self.sent > 0.1 * self.every):
                self._send()

    def _update(self, count: int) -> None:
        self.metrics |= make_updates(self.learner, count)

    def _send(self) -> None:
        self.sent = time.monotonic()
        if self.sent_updates == self.learner.updates:
            return
        self.sent_updates = self.learner.updates
        counts = {"updates": self.learner.updates, "due": self.learner.updates_due()}
        self.link.send_bytes(pack("weights", weights(self.learner), metrics=self.metrics, **counts))

    def _take(self, data: bytes) -> None:
        kind, tensors, fields = unpack(data)
        learner = self.learner
        if kind == "frames":
            learner.observe(unflatten(tensors, fields["size"]), torch.tensor(fields["rows"]))
        elif kind == "demonstrations":
            rows = torch.tensor(fields["rows"]) if fields["rows"] is not None else None
            learner.add_demonstrations(unflatten(tensors, fields["size"]), rows)
        elif kind == "interrupt":
            learner.interrupt()
        elif kind == "settle":
            while learner.updates_due():
                self._update(min(learner.updates_due(), BURST))
            self._send()
            self.link.send_bytes(pack("settled"))
        elif kind == "save":
            try:
                learner.save(Path(fields["folder"]), replay=fields["replay"])
            except UserError as error:
                self.link.send_bytes(pack("saved", error=str(error)))
            else:
                self.link.send_bytes(pack("saved", error=""))
        elif kind == "load":
            learner.load(Path(fields["folder"]), replay=fields["replay"])
            self.sent_updates = -1
            self._send()
            self.link.send_bytes(pack("loaded", steps=learner.steps, updates=learner.updates))


def weights(learner: Any) -> dict[str, Tensor]:
    """What acting needs of an algorithm's networks, by name."""
    return {
        f"{name}.{key}": whole(value)
        for name, module in learner.acting_modules().items()
        for key, value in module.state_dict().items()
    }


def load_weights(learner: Any, tensors: dict[str, Tensor]) -> None:
    """Put what ``weights`` gave into the networks of another that acts."""
    for name, module in learner.acting_modules().items():
        module.load_state_dict(
            {k[len(name) + 1 :]: v for k, v in tensors.items() if k.startswith(name + ".")}
        )
