"""Moments from which earlier episodes failed, to begin new episodes from: VLAC's return-and-explore (arXiv 2509.15937).

While episodes run, a moment of each is kept every few steps. When somebody takes over, or an episode ends without
success, the moment some steps before that goes into a bounded store. Episodes that begin there count how often the
policy then succeeds by itself: a moment of rate p is chosen in proportion to p (1 - p), which is largest where success
is neither certain nor hopeless, and the least of them makes room for new ones.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from vla_rl.environment import StartState, VlaVectorEnv
from vla_rl.errors import UserError
from vla_rl.keys import IMAGES

TENSORS, COUNTERS = "hard_states.safetensors", "hard_states.json"


@dataclass
class HardState:
    """A moment and what has come of it.

    Attributes:
        number: its own, never used again.
        state: as the environment gave it.
        tries: episodes that began here and ended.
        wins: those of them that succeeded with nobody's help.
    """

    number: int
    state: StartState
    tries: int = 0
    wins: int = 0

    @property
    def weight(self) -> float:
        """What it is chosen in proportion to: p (1 - p), p from the counts and one success and one failure more."""
        rate = (self.wins + 1) / (self.tries + 2)
        return rate * (1 - rate)


class HardStates:
    """The store, and what the collector tells it; see the module's docstring.

    Args:
        env: offers ``start_states``.
        capacity: moments kept.
        every: control steps between the moments looked at.
        back: control steps before a take-over or an end without success.
        seed: of the choice.
        folder: where a picture of each moment is kept for whoever arranges the scene, if it has one.

    Raises:
        UserError: an environment that cannot begin from saved states, or a setting out of range.
    """

    def __init__(
        self,
        env: VlaVectorEnv,
        capacity: int = 64,
        every: int = 5,
        back: int = 20,
        seed: int = 0,
        folder: Path | None = None,
    ) -> None:
        if not env.start_states:
            raise UserError(
                f"schedule: {env.env_spec.id} cannot begin episodes from saved states (env=sim_arm and env=robot can): "
                "leave hard_share out of the stages"
            )
        for name, value in (("capacity", capacity), ("every", every), ("back", back)):
            if value < 1:
                raise UserError(f"schedule.hard_states.{name}={value} must be at least 1")
        self.env, self.capacity, self.every, self.back, self.folder = env, capacity, every, back, folder
        self.share = 0.0
        """Share of the episodes that begin from the store."""
        self.keeping = True
        """Whether moments are still being looked for."""
        self.entries: list[HardState] = []
        self.rng = np.random.default_rng(seed)
        self._next = 0
        count = env.num_envs
        self.origin: list[HardState | None] = [None] * count
        """Of each row's episode; None = the environment's own beginning."""
        self.helped = [False] * count
        """Whether somebody has taken over in each row's episode."""
        self._recent: list[deque[tuple[int, StartState]]] = [
            deque(maxlen=back // every + 2) for _ in range(count)
        ]

    # ---- told by the collector --------------------------------------------------------------------------

    def begin(self, rows: Sequence[int]) -> dict[int, StartState]:
        """Choose where the new episodes of ``rows`` begin; rows that are left out begin as usual."""
        starts: dict[int, StartState] = {}
        for row in rows:
            self._recent[row].clear()
            self.helped[row], self.origin[row] = False, None
            if self.share <= 0 or not self.entries or self.rng.random() >= self.share:
                continue
            weights = np.array([entry.weight for entry in self.entries])
            entry = self.entries[int(self.rng.choice(len(weights), p=weights / weights.sum()))]
            self.origin[row] = entry
            picture = self._picture(entry)
            starts[row] = entry.state | ({"picture": str(picture)} if picture else {})
        return starts

    def look(self, steps: Sequence[int]) -> None:
        """Keep the moments that are due; ``steps`` [B] since each row's beginning."""
        if not self.keeping:
            return
        due = [row for row, step in enumerate(steps) if step and step % self.every == 0]
        if due:
            for row, state in zip(due, self.env.save_states(due), strict=True):
                if state is not None:
                    self._recent[row].append((int(steps[row]), state))

    def took_over(self, row: int, step: int) -> None:
        """Somebody is engaged in ``row`` at ``step``."""
        if not self.helped[row]:
            self.helped[row] = True
            self._add(row, step)

    def rewound(self, row: int, step: int) -> None:
        """The episode in ``row`` is back at ``step``: what came after it is forgotten."""
        while self._recent[row] and self._recent[row][-1][0] > step:
            self._recent[row].pop()

    def ended(self, row: int, success: bool, step: int) -> None:
        """The episode in ``row`` is over after ``step`` steps."""
        entry = self.origin[row]
        if entry is not None:
            entry.tries += 1
            entry.wins += success and not self.helped[row]
        if not success and not self.helped[row]:
            self._add(row, step)

    # ---- the store --------------------------------------------------------------------------------------

    def _add(self, row: int, step: int) -> None:
        before = [state for at, state in self._recent[row] if at <= step - self.back]
        if not before or not self.keeping:
            return
        entry = HardState(self._next, before[-1])
        self._next += 1
        if len(self.entries) >= self.capacity:
            self.entries.remove(min(self.entries, key=lambda e: (e.weight, e.number)))
        self.entries.append(entry)
        self._picture(entry)

    def _picture(self, entry: HardState) -> Path | None:
        """A file that shows the moment, cameras side by side; None when it has no picture."""
        pictures = [entry.state[key] for key in sorted(entry.state) if key.startswith(IMAGES)]
        if not pictures or self.folder is None:
            return None
        path = self.folder / f"{entry.number:06d}.png"
        if not path.is_file():
            from PIL import Image

            height = min(p.shape[1] for p in pictures)
            self.folder.mkdir(parents=True, exist_ok=True)
            whole = np.concatenate([p[:, :height] for p in pictures], axis=2)
            Image.fromarray(np.ascontiguousarray(whole.transpose(1, 2, 0))).save(path)
        return path

    def save(self, folder: Path) -> None:
        """Into a checkpoint: safetensors and JSON."""
        tensors = {f"{e.number}/{key}": value for e in self.entries for key, value in e.state.items()}
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / TENSORS)
        counters: dict[str, Any] = {
            "entries": [[e.number, e.tries, e.wins] for e in self.entries],
            "next": self._next,
            "rng": self.rng.bit_generator.state,
        }
        (folder / COUNTERS).write_text(json.dumps(counters))

    def load(self, folder: Path) -> None:
        """From a checkpoint.

        Raises:
            UserError: it has none, or they are damaged.
        """
        try:
            counters = json.loads((folder / COUNTERS).read_text())
            tensors = load_file(folder / TENSORS)
            entries = [HardState(n, {}, tries, wins) for n, tries, wins in counters["entries"]]
            by_number = {entry.number: entry for entry in entries}
            for key, value in tensors.items():
                number, name = key.split("/", 1)
                by_number[int(number)].state[name] = value
            self.rng.bit_generator.state = counters["rng"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{folder} has no usable hard states ({error}): resume from another checkpoint"
            ) from error
        self.entries, self._next = entries, counters["next"]
