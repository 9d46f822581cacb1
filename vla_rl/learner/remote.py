"""The actor's side of a learner in a process of its own: an ``Algorithm`` that acts here and learns there.

Acting never waits: frames go out through a queue, weights come in when they are ready. Every frame since the newest
checkpoint is also in a journal on disk, so that neither a killed learner nor a killed actor loses any: a new learner
begins from the checkpoint and is given the journal. The price is that runs are no longer bit-exact.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.algorithms.elsewhere import learns_from_decisions
from vla_rl.data.journal import Journal, recover
from vla_rl.environment import EnvSpec
from vla_rl.errors import NonFiniteError, UserError
from vla_rl.learner.link import LearnerLink
from vla_rl.learner.messages import flatten, pack, unflatten
from vla_rl.learner.process import load_weights

log = logging.getLogger(__name__)

RESTARTS = 3
"""Deaths of the learner within ``WINDOW`` after which it is given up."""

WINDOW = 60.0
"""Seconds."""

KEPT = 3
"""Journals kept: of the newest checkpoint and of those that a broken one falls back on."""


class RemoteLearner:
    """See the module's docstring; use as an ``Algorithm``, ``close`` at the end.

    Args:
        local: the same algorithm, which acts here and never stores a frame.
        settings: its configuration (plain containers with ``_target_``).
        env_spec: of the environment.
        num_envs: its rows.
        folder: of the journals.
        newest: gives the newest checkpoint's algorithm folder, if there is one.
        seed: of the learner.
        threads: torch threads of the learner.
        every: seconds between weights.
        nice: added to the learner's niceness: acting comes first.

    Raises:
        UserError: an algorithm that cannot learn elsewhere.
    """

    def __init__(
        self,
        local: Any,
        settings: dict[str, Any],
        env_spec: EnvSpec,
        num_envs: int,
        folder: Path,
        newest: Callable[[], Path | None],
        *,
        seed: int = 0,
        threads: int = 1,
        every: float = 1.0,
        nice: int = 5,
    ) -> None:
        if learns_from_decisions(local) or not hasattr(local, "acting_modules"):
            raise UserError(
                f"run.learner=process: {type(local).__name__} learns only where it acts; set run.learner=inline"
            )
        self.local, self.folder, self.newest = local, folder, newest
        self.policy, self.eval_policy, self.config = local.policy, local.eval_policy, local.config
        self.base, self.on_policy = local.base, local.on_policy
        serve = (settings, local.policy.base.spec, env_spec, num_envs, seed, threads, every, nice)
        self._begin = lambda: LearnerLink(serve)
        self.link = self._begin()
        self.updates = self.behind = 0
        """Updates done there, and those it still owes."""
        self.deaths: list[float] = []
        """When it had to be started again, monotonic."""
        self.journal: Journal | None = None
        self.recovered: list[tuple[TensorDict, Tensor]] = []
        """Frames after the checkpoint that ``load`` found in journals."""

    # ---- acting -----------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Environment steps observed."""
        return self.local.steps

    @property
    def ready(self) -> bool:
        """Whether the warm-up is over."""
        return self.local.ready

    @property
    def starting(self) -> bool:
        """Whether its process is still on its way: whoever asks it for something now has to wait."""
        return self.link.dead or not self.link.heard

    def observe(self, frames: TensorDict, rows: Tensor) -> None:
        """Journal the frames, send them, count them."""
        tensors = flatten(frames)
        arrays = {key: value.detach().cpu().numpy() for key, value in tensors.items()}
        if self.journal is None:
            self.journal = Journal(self._path(self.steps))
        self.journal.append(arrays | {"rows": rows.numpy().astype(np.int64)})
        self._send_frames(tensors, rows)
        self.local.count(frames)

    def _send_frames(self, tensors: dict[str, Tensor], rows: Tensor) -> None:
        self.link.send(pack("frames", tensors, size=len(rows), rows=rows.tolist()))

    def add_demonstrations(self, frames: TensorDict, rows: Tensor | None = None) -> None:
        """Send whole demonstration episodes; kept for good by the next checkpoint."""
        listed = None if rows is None else rows.tolist()
        self.link.send(pack("demonstrations", flatten(frames), size=len(frames), rows=listed))

    # ---- learning ---------------------------------------------------------------------------------------

    def updates_due(self, env_steps: int | None = None) -> int:
        """1 when there is something from the learner to take, else 0: updates are its own affair."""
        return int(self.link.dead or self.link.weights is not None)

    def update(self) -> dict[str, Tensor]:
        """Take the newest weights; start a learner that has died again.

        Raises:
            UserError, NonFiniteError: the learner failed, in its own words; or it dies again and again.
        """
        if self.link.dead:
            self._revive()
        message = self.link.take_weights()
        if message is None:
            return {}
        tensors, fields = message
        load_weights(self.local, tensors)
        self.updates, self.behind = fields["updates"], fields["due"]
        values = fields["metrics"] | {
            "behind": float(self.behind),
            "learner_restarts": float(len(self.deaths)),
        }
        return {name: torch.tensor(value) for name, value in values.items()}

    def settle(self) -> None:
        """Wait until every update that the steps so far have earned is done, and take its weights."""
        self._ask(pack("settle"), "settled")
        self.update()

    def _revive(self) -> None:
        self._explain()
        now = time.monotonic()
        self.deaths.append(now)
        if sum(now - t < WINDOW for t in self.deaths) > RESTARTS:
            raise UserError(
                f"the learner's process died {RESTARTS + 1} times within {WINDOW:g} s (out of memory?); its last "
                "checkpoint and all frames since are kept: resume="
            )
        log.warning("the learner's process has died; a new one begins from the newest checkpoint")
        self.link.close()
        self.link = self._begin()
        folder = self.newest()
        after = 0
        if folder is not None:
            self.link.send(pack("load", folder=str(folder), replay=True))
            after = json.loads((folder / "algorithm.json").read_text())["steps"]
        for tensors, rows in self._journalled(after):
            self._send_frames(tensors, rows)

    def _explain(self) -> None:
        """Raise what the learner said before it ended, if it ended by itself."""
        failure = self.link.failure
        if failure is None:
            return
        log.error("learner: %s", failure["trace"])
        kind = NonFiniteError if failure["error"] == "NonFiniteError" else UserError
        raise kind(f"the learner stopped: {failure['text']}")

    def _ask(self, message: bytes, reply: str) -> dict[str, Any]:
        while True:
            self.link.send(message)
            fields = self.link.wait(reply)
            if fields is not None:
                return fields
            self._revive()

    # ---- checkpoints ------------------------------------------------------------------------------------

    def save(self, folder: Path, *, replay: bool = True) -> None:
        """The learner writes its checkpoint; the frames from here on go to a new journal.

        Raises:
            UserError: no space left.
        """
        problem = self._ask(pack("save", folder=str(folder), replay=replay), "saved")["error"]
        if problem:
            raise UserError(problem)
        if replay:
            self._rotate()

    def _rotate(self) -> None:
        if self.journal is not None:
            self.journal.close()
        for path in self._journals()[:-KEPT]:
            path.unlink()
        path = self._path(self.steps)
        path.unlink(missing_ok=True)  # its frames are in the checkpoint
        self.journal = Journal(path)

    def load(self, folder: Path, *, replay: bool = True) -> None:
        """Continue from a checkpoint and the frames journalled after it (``recovered``).

        Raises:
            UserError: missing or truncated files.
        """
        self.local.load(folder, replay=False)
        self._ask(pack("load", folder=str(folder), replay=replay), "loaded")
        self.update()
        self.recovered = []
        for tensors, rows in self._journalled(self.steps) if replay else []:
            frames = unflatten(tensors, len(rows))
            self._send_frames(tensors, rows)
            self.local.count(frames)
            self.recovered.append((frames, rows))
        if self.recovered:
            self.link.send(pack("interrupt"))

    def _path(self, steps: int) -> Path:
        return self.folder / f"{steps:09d}.journal"

    def _journals(self) -> list[Path]:
        return sorted(self.folder.glob("*.journal"))

    def _journalled(self, after: int) -> list[tuple[dict[str, Tensor], Tensor]]:
        """Frames of the journals from step ``after`` on, in order."""
        found = []
        for path in self._journals():
            if int(path.stem) >= after:
                for record in recover(path):
                    rows = torch.from_numpy(record.pop("rows").copy())
                    found.append(({k: torch.from_numpy(v.copy()) for k, v in record.items()}, rows))
        return found

    def close(self) -> None:
        """End the learner's process; the journal stays."""
        if self.journal is not None:
            self.journal.close()
        self.link.close()
