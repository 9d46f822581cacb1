"""Batches of questions with their answers, drawn from trajectories; deterministic by generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vla_rl.critic.augment import GUISES
from vla_rl.critic.labels import EARLY, done_label, progress_label, still
from vla_rl.critic.model import AS_SHOWN, reference_moments
from vla_rl.critic.trajectories import Trajectory
from vla_rl.errors import UserError

PAIRS = ((0, 1), (1, 0), (0, 2), (2, 0))
"""Of the three moments of a draw: a short way and a long one, there and back, so that half of all pairs lead back."""

BELIEF_RATE = 0.2
"""Of the newest answer in what the critic is known to believe."""


@dataclass
class PairConfig:
    """What is drawn.

    Attributes:
        skip: frames between the moments that will be judged; the short pairs are that far apart.
        mismatch: share of draws with the instruction of another task: no progress, not done.
        believed: share of these whose instruction is one that the critic has believed in beside such a film (``Pairs.believed``), the more
            often the more it did; the rest are drawn evenly. A few pairs of tasks that look alike are all that a trained critic gets wrong.
        pictures: single pictures asked about done, per draw.
        mismatch_shown: the same where a reference is shown. Asked too often whether film and reference are of one task, a critic takes a
            task it has never seen for another.
        same: share of draws whose short pair is one moment twice.
        references: pictures of a reference.
        reference_share: share of batches that come with a reference of the same task.
        nameless: share of draws with a reference whose instruction does not name the task.
        backward: share of draws with a reference that are films played backwards, the reference too, under an instruction that does
            not name the task: twice as many tasks, and what is wanted can be told from the reference alone.
        disguised: share of the draws whose instruction does not name the task that are shown mirrored, upside down or in other colours,
            film and reference alike (``vla_rl.critic.augment.disguised``): many more tasks.
    """

    skip: int = 5
    mismatch: float = 0.2
    believed: float = 0.5
    mismatch_shown: float = 0.1
    pictures: int = 2
    same: float = 0.05
    references: int = 6
    reference_share: float = 0.5
    nameless: float = 0.5
    backward: float = 0.4
    disguised: float = 0.5


def check(config: PairConfig) -> None:
    """Refuse settings that mean nothing.

    Raises:
        UserError: named.
    """
    for name in ("skip", "pictures"):
        if getattr(config, name) < 1:
            raise UserError(f"train.pairs.{name}={getattr(config, name)} must be at least 1")
    if config.references < 2:
        raise UserError(
            f"train.pairs.references={config.references}: a reference has a beginning and an end, at least 2"
        )
    for name in (
        "mismatch",
        "believed",
        "mismatch_shown",
        "same",
        "reference_share",
        "nameless",
        "backward",
        "disguised",
    ):
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"train.pairs.{name}={getattr(config, name)} is outside 0..1")


@dataclass
class Request:
    """What a draw asks: to do ``task``, said in ``words``, as a ``reference`` [R] shows it ([0]: without one), played ``backward``, looking like ``guise``."""

    task: str
    words: str
    reference: Tensor
    backward: bool = False
    guise: int = 0


@dataclass
class Questions:
    """A batch: G draws of pairs and P single pictures.

    Attributes:
        moments: [G, 3] frames of the pairs (``PAIRS``).
        progress: [G, 4] answers.
        tasks: G instructions.
        pictures: [P] frames of the question whether all is done.
        done: [P] 0 or 1.
        done_tasks: P instructions.
        references: [G, R] frames, of pairs, and of pictures P / G at a time; None: a batch without.
        guises: [G] how pictures and references of a draw are shown (``disguised``).
        films: G tasks that the films are of.
    """

    moments: Tensor
    progress: Tensor
    tasks: list[str]
    pictures: Tensor
    done: Tensor
    done_tasks: list[str]
    references: Tensor | None = None
    guises: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    films: list[str] = field(default_factory=list)


class Frames:
    """Pictures of all trajectories one after the other, each where it is: nothing is copied but what is asked for.

    Args:
        parts: uint8 [T, 3, H, W] each.

    Attributes:
        first: [N] of each part.
        size: (H, W).
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = list(parts)
        lengths = torch.tensor([len(part) for part in self.parts])
        self.first, self.count = lengths.cumsum(0) - lengths, int(lengths.sum())
        self.size = tuple(self.parts[0].shape[-2:])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Tensor) -> Tensor:
        """Uint8 [..., 3, H, W] of the frames ``index`` [...]."""
        flat = index.flatten().contiguous()
        which = torch.searchsorted(self.first, flat, right=True) - 1
        places = (flat - self.first[which]).tolist()
        found = [self.parts[part][place] for part, place in zip(which.tolist(), places, strict=True)]
        return torch.stack(found).unflatten(0, index.shape)


@dataclass
class Pairs:
    """Draws questions.

    Args:
        trajectories: at least one of them successful.
        config: settings.
        generator: of all draws.

    Raises:
        UserError: no success, or settings that mean nothing.
    """

    trajectories: Sequence[Trajectory]
    config: PairConfig
    generator: torch.Generator
    frames: Frames = field(init=False)

    def __post_init__(self) -> None:
        check(self.config)
        self.good = [i for i, t in enumerate(self.trajectories) if t.success]
        if not self.good:
            raise UserError(
                f"none of the {len(self.trajectories)} episodes succeeded: progress is learned from those that do"
            )
        self.frames = Frames([t.pictures for t in self.trajectories])
        self.first = self.frames.first
        self.tasks = sorted({t.task for t in self.trajectories})
        self.by_task = {
            task: [i for i in self.good if self.trajectories[i].task == task] for task in self.tasks
        }
        self.belief = torch.zeros(len(self.tasks), len(self.tasks))
        """Progress that the critic has lately seen in films of one task [row] under the instruction of another [column]."""
        self.films = {
            task: [i for i, t in enumerate(self.trajectories) if t.task == task] for task in self.tasks
        }

    def draw(self, count: int) -> Questions:
        """``count`` draws of pairs and ``pictures`` times as many single ones, which share the pairs' references."""
        shown = self._chance() < self.config.reference_share
        rows = [self._pairs(shown) for _ in range(count)]
        # A draw's reference serves its pictures too: looking at references is most of what a step costs.
        others = [
            self._picture(index % 2 == 0, rows[index // self.config.pictures][2] if shown else None)
            for index in range(count * self.config.pictures)
        ]
        moments = torch.tensor([row[0] for row in rows])
        labels = torch.stack([row[1] for row in rows])
        for column, (one, other) in enumerate(PAIRS):
            labels[still(self.frames[moments[:, one]], self.frames[moments[:, other]]), column] = 0.0
        return Questions(
            moments,
            labels,
            [row[2].words for row in rows],
            torch.tensor([row[0] for row in others]),
            torch.tensor([row[1] for row in others]),
            [row[2] for row in others],
            torch.stack([row[2].reference for row in rows]) if shown else None,
            torch.tensor([row[2].guise for row in rows]),
            [row[3] for row in rows],
        )

    def believed(self, asked: Questions, progress: Tensor) -> None:
        """Note what the critic answered: ``progress`` [G], there or back, seen in the films of ``asked``, which came without references."""
        for film, words, seen in zip(asked.films, asked.tasks, progress.tolist(), strict=True):
            if film != words:
                at = self.tasks.index(film), self.tasks.index(words)
                self.belief[at] = (1 - BELIEF_RATE) * self.belief[at] + BELIEF_RATE * seen

    def videos(self, count: int) -> tuple[Tensor, list[str]]:
        """Frames [count, references] of episodes that succeeded, and their instructions."""
        which = [self._one(self.good) for _ in range(count)]
        return torch.stack([self._moments_of(i) for i in which]), [self.trajectories[i].task for i in which]

    def _pairs(self, shown: bool) -> tuple[list[int], Tensor, Request, str]:
        which = self._one(self.good)
        trajectory = self.trajectories[which]
        end = trajectory.end
        i = self._below(end)
        near = i if self._chance() < self.config.same else min(i + self.config.skip, end)
        far = i + 1 + self._below(end - i)
        places = torch.tensor([i, near, far])
        one, other = (places[[pair[side] for pair in PAIRS]] for side in (0, 1))
        labels = progress_label(one, other, torch.full((4,), end))
        request = self._request(which, shown)
        if request.task != trajectory.task:
            labels = torch.zeros(4)
        if request.backward:
            places = end - places
        first = int(self.first[which])
        return [first + int(p) for p in places], labels, request, trajectory.task

    def _picture(self, done: bool, request: Request | None) -> tuple[int, float, str]:
        """Frame, answer and instruction; of ``request``, or of one of its own without a reference."""
        backward = request is not None and request.backward
        # Backwards, only a success has an end: where it began.
        among = self._films(request, done or backward)
        while True:
            which = self._one(among)
            trajectory = self.trajectories[which]
            if done:
                moment = 0 if backward else trajectory.end + self._below(len(trajectory) - trajectory.end)
            else:
                moment = self._below(trajectory.end + 1 if backward else len(trajectory))
            place = trajectory.end - moment if backward else moment
            at, end, success = (torch.tensor([v]) for v in (place, trajectory.end, trajectory.success))
            label = done_label(at, end, success, EARLY if backward else trajectory.surely_before)
            if not label.isnan():
                break
        own = request or self._request(which, False)
        right = own.task == trajectory.task
        return int(self.first[which]) + moment, float(label) if right else 0.0, own.words

    def _films(self, request: Request | None, successes: bool) -> Sequence[int]:
        """Those a picture is taken from: of the request's task, or of another, or of all where nothing is asked yet."""
        if request is None:
            return self.good if successes else range(len(self.trajectories))
        task = self._task_or_another(request.task, self.config.mismatch_shown)
        return (self.by_task if successes else self.films)[task]

    def _task_or_another(self, task: str, mismatch: float) -> str:
        others = [t for t in self.tasks if t != task and self.by_task[t]]
        if not others or self._chance() >= mismatch:
            return task
        if len(others) > 1 and self._chance() < self.config.believed:
            row = self.belief[self.tasks.index(task)]
            weights = torch.stack([row[self.tasks.index(other)] for other in others])
            if weights.sum() > 0:
                return others[int(torch.multinomial(weights, 1, generator=self.generator))]
        return others[self._below(len(others))]

    def _request(self, which: int, shown: bool) -> Request:
        """What is asked beside the film ``which``."""
        backward = shown and self.config.backward > 0 and self._chance() < self.config.backward
        mismatch = self.config.mismatch_shown if shown else self.config.mismatch
        task = self._task_or_another(self.trajectories[which].task, mismatch)
        if not shown:
            return Request(task, task, torch.zeros(0, dtype=torch.long))
        choices = [i for i in self.by_task[task] if i != which] or self.by_task[task]
        reference = self._moments_of(self._one(choices))
        nameless = backward or self._chance() < self.config.nameless
        disguised = nameless and self.config.disguised > 0 and self._chance() < self.config.disguised
        return Request(
            task,
            AS_SHOWN if nameless else task,
            reference.flip(0) if backward else reference,
            backward,
            1 + self._below(GUISES - 1) if disguised else 0,
        )

    def _moments_of(self, which: int) -> Tensor:
        return self.first[which] + reference_moments(self.trajectories[which].end, self.config.references)

    def _chance(self) -> float:
        return float(torch.rand((), generator=self.generator))

    def _below(self, count: int) -> int:
        return int(torch.randint(max(1, count), (), generator=self.generator))

    def _one(self, choices: Sequence[int]) -> int:
        return choices[self._below(len(choices))]
