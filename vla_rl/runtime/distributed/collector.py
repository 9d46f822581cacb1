"""A collector: an environment, the acting half of an algorithm, and a learner somewhere else.

Frames go out in numbered batches, each sent again until the learner has it, while the next is being played; weights come
back when there are new ones. With a base policy elsewhere (``asked``), only the residual runs here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.algorithms.base import tell_discount
from vla_rl.algorithms.elsewhere import learns_from_decisions
from vla_rl.errors import UserError
from vla_rl.learner.messages import flatten, pack
from vla_rl.learner.process import load_weights, weights
from vla_rl.rollout.collector import Collector, Episode
from vla_rl.runtime.distributed.history import Followed
from vla_rl.runtime.distributed.settings import places_of
from vla_rl.runtime.distributed.told import told_by
from vla_rl.train import TRAIN_SEEDS

LIFE = 20_000
"""Episodes of one generation of a collector, before its scenes come again."""

PATIENCE = 300.0
"""Seconds in which a learner that has gone, or a policy elsewhere, may come back: a busy machine takes minutes to start one."""

PAUSE = 0.1
"""Seconds between two looks at a learner that is gone."""

BUSY = 1.0
"""Seconds in which a learner that is busy answers, at the latest."""


class Learner(Protocol):
    """What a collector asks of ``DistributedLearner``; every call may raise ``Unreachable``."""

    def join(self, collector: int, fingerprint: dict[str, str]) -> dict[str, int]:
        """See there."""
        ...

    def push(self, collector: int, generation: int, number: int, message: bytes) -> dict[str, Any]:
        """See there."""
        ...

    def hail(self, seconds: float = 0.0) -> dict[str, Any]:
        """See there."""
        ...

    def weights_since(self, version: int) -> list[bytes]:
        """See there."""
        ...


class Unreachable(RuntimeError):
    """The learner has died or does not answer; another may take its place."""


class DistributedCollector:
    """Plays until the learner says stop.

    Args:
        index: of its place at the learner.
        config: of the run (plain containers): ``env``, ``policy``, ``algorithm``, ``run``, ``num_collectors``.
        learner: where frames go.
        fingerprint: of code and configuration.
        base: who decides chunks; None = the policy of ``config``, here.
        env: where it plays; None = that of ``config``.
        every: control steps between two batches.
        steps: own environment steps after which it leaves; None = when the learner says stop.
        leaving: set by whoever wants it to leave, which it does between two steps.
        patience: seconds in which a learner that has gone may come back.
    """

    def __init__(
        self,
        index: int,
        config: dict[str, Any],
        learner: Learner,
        fingerprint: dict[str, str],
        *,
        base: Any = None,
        env: Any = None,
        every: int = 10,
        steps: int | None = None,
        leaving: threading.Event | None = None,
        patience: float = PATIENCE,
    ) -> None:
        from omegaconf import OmegaConf

        from vla_rl.config import build
        from vla_rl.policies.load import load_base
        from vla_rl.rewards.build import environment_settings, rewarded
        from vla_rl.runtime.seeding import seed_everything
        from vla_rl.runtime.threads import set_threads

        node: Any = OmegaConf.create(config)
        set_threads(node.run.threads or 1)
        self.index, self.learner, self.fingerprint = index, learner, fingerprint
        self.every, self.steps, self.patience = every, steps, patience
        self.leaving = leaving or threading.Event()
        self.seed, self.places = int(node.run.seed), places_of(node)
        if env is None:
            env = rewarded(build(node.env, **environment_settings(node)), node.get("reward"))
        self.env: Any = env
        base = (
            load_base(node.policy, candidates=int(node.algorithm.get("candidates", 1) or 1))
            if base is None
            else base
        )
        seed_everything(1000 * self.seed + index)
        self.algorithm: Any = build(node.algorithm, base=base, env_spec=env.env_spec, num_envs=env.num_envs)
        tell_discount(env, self.algorithm)
        own = weights(self.algorithm)
        self.followed = Followed(own, self._ask)
        self.decides = learns_from_decisions(self.algorithm)
        self._batch: list[tuple[TensorDict, Tensor]] = []
        self._episodes: list[bool] = []
        self._stops = len(self.env.stops)
        self.generation = self.number = 0
        self.answer: dict[str, Any] = {"stop": False, "wait": False}
        self._sender = ThreadPoolExecutor(1, "sender")
        self._sent: Future[dict[str, Any]] | None = None
        self._fetched: list[bytes] | None = None
        """What brings the weights up to date, fetched while the environment was being played."""

    def run(self) -> int:
        """Play to the end, or until told to leave; returns the environment steps of this life.

        Raises:
            UserError: the learner refuses, or has been gone for longer than ``patience``.
        """
        try:
            return self._play()
        except KeyboardInterrupt:
            self.patience = 0.0  # of the sender, which may be waiting for a learner
            raise

    def _play(self) -> int:
        joined = self._until(lambda: self.learner.join(self.index, self.fingerprint))
        self.generation, self.number = joined["generation"], 0
        self.algorithm.reach(**joined["reached"])
        self._update()
        collector = Collector(
            self.env, self.algorithm.policy, self._scene, sink=self._keep, on_episode=self._ended
        )
        collector.begin()
        while not self._over() and not (self.steps and collector.steps >= self.steps):
            for _ in range(self.every):
                collector.step()
                if self.leaving.is_set():
                    break
            self._send()
            while self.answer["wait"] and not self._over():
                self._confirm()
                self._heard(self._until(lambda: self.learner.hail(BUSY)))
        if not self.answer["stop"]:
            # The others go on: what is in flight here ends as a time limit would end it.
            collector.cut()
            if self.decides or self._batch:
                self._send()
        self._confirm()
        return collector.steps

    def _over(self) -> bool:
        return self.answer["stop"] or self.leaving.is_set()

    def _scene(self, episode: int, row: int) -> int:
        number = ((self.generation * LIFE + episode) * self.places + self.index) % TRAIN_SEEDS
        return TRAIN_SEEDS * (1 + self.seed) + number

    def _keep(self, frames: TensorDict, rows: Tensor) -> None:
        if self.decides:
            self.algorithm.assemble(frames, rows)
            return
        self._batch.append((frames.clone(), rows.clone()))
        self.algorithm.count(frames)

    def _ended(self, episode: Episode) -> None:
        if not episode.interrupted:
            self._episodes.append(episode.success)

    def _send(self) -> None:
        """One batch, on its way while the next is played; before it, whatever the one before has brought back."""
        self._confirm()
        message, number = self._message(), self.number
        self.number += 1
        self._batch, self._episodes = [], []
        self._sent = self._sender.submit(self._push, number, message)

    def _push(self, number: int, message: bytes) -> dict[str, Any]:
        """Send a batch, and fetch the weights that its answer tells of."""
        answer = self._until(lambda: self.learner.push(self.index, self.generation, number, message))
        if answer["version"] != self.followed.version:
            self._fetched = self._ask(self.followed.version)
        return answer

    def _message(self) -> bytes:
        """What was played since the last one: frames, or the decisions that are over."""
        stops, self._stops = self._stops, len(self.env.stops)
        fields: dict[str, Any] = {"version": self.followed.version, "episodes": self._episodes}
        fields |= {"told": told_by(self.env), "safety_stops": self._stops - stops}
        if self.decides:
            over, rows, steps = self.algorithm.hand_over()
            tensors = {} if over is None else flatten(over)
            return pack("decisions", tensors, size=len(rows), rows=rows.tolist(), steps=steps, **fields)
        frames: Any = torch.cat([frames for frames, _ in self._batch])
        rows = torch.cat([rows for _, rows in self._batch])
        return pack("frames", flatten(frames), size=len(frames), rows=rows.tolist(), **fields)

    def _confirm(self) -> None:
        """Wait until the batch that is on its way has arrived."""
        sent, self._sent = self._sent, None
        if sent is not None:
            self._heard(sent.result())

    def _heard(self, answer: dict[str, Any]) -> None:
        self.answer = answer
        self.algorithm.reach(**answer["reached"])
        if answer["version"] != self.followed.version:
            self._update()

    def _update(self) -> None:
        if self.followed.catch_up():
            load_weights(self.algorithm, self.followed.weights)

    def _ask(self, version: int) -> list[bytes]:
        fetched, self._fetched = self._fetched, None
        return fetched if fetched is not None else self._until(lambda: self.learner.weights_since(version))

    def _until(self, call: Callable[[], Any]) -> Any:
        """The answer of a learner that may be on its way back."""
        began = time.monotonic()
        while True:
            try:
                return call()
            except Unreachable as error:
                if time.monotonic() - began > self.patience:
                    raise UserError(
                        f"the learner has not been reachable for {self.patience:g} s ({error}): the run's last checkpoint and all "
                        "frames it has had are kept; resume="
                    ) from error
                time.sleep(PAUSE)

    def close(self) -> None:
        """Free the environment."""
        self._sender.shutdown(cancel_futures=True)
        self.env.close()
