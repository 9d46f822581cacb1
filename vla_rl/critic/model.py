"""The critic: a token VLA's own network, asked another question.

The answer is one of the words that the same network acts with, whose range -1 ... 1 is progress from -100 % to 100 %; all of its
distribution is read, so that a judgement has decimals and a standard deviation and needs one pass and no decoding. Pictures come
first, each looked at once whatever the number of pairs it is in: reference, then the two to compare, then the question.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_rl.critic.film import Judged, judge
from vla_rl.critic.trajectories import Trajectory
from vla_rl.errors import UserError
from vla_rl.policies.action_tokens import actions_of

NOTES = "critic.json"
"""In a critic's folder, beside what any token VLA has."""

PROGRESS = "Compare two images: how much closer is the second to {task}?"
DONE = "Has the robot finished to {task}?"
AS_SHOWN = "do as shown"
"""The instruction of a question whose reference alone says what is wanted."""
DESCRIBE = "What has the robot been asked to do?"

BATCH = 64
"""Pictures or questions per pass."""

LONGEST = 255
"""Bytes of an instruction."""

SAID = 64
"""Tokens of a description, at most."""


class Critic:
    """Progress and done from pictures and a sentence.

    Args:
        policy: LeRobot's side of a ``token_vla``.
        notes: what ``vla-rl critic train`` wrote: ``image`` (height, width), ``skip`` frames between judgements, ``threshold``
            of done and ``thresholds`` of each task, ``tasks`` that it was trained on, ``references`` pictures of a reference,
            ``describes`` whether it has learned to describe.

    Raises:
        UserError: another type of policy.
    """

    def __init__(self, policy: Any, notes: dict[str, Any]) -> None:
        if policy.config.type != "token_vla":
            raise UserError(
                f"a {policy.config.type} policy cannot judge: a critic is a token_vla (vla-rl critic train)"
            )
        if policy.config.fast:
            raise UserError(
                "a critic answers in bins, and this token_vla has FAST words: begin from one without fast="
            )
        from transformers import AutoTokenizer

        self.policy, self.network, self.notes = policy, policy.network, notes
        self.tokenizer = AutoTokenizer.from_pretrained(policy.config.vlm_model_name)
        self.tokenizer.padding_side = "right"
        self.bins: int = policy.config.bins
        self.centres = actions_of(torch.arange(self.bins), self.bins)

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> Critic:
        """A folder that ``vla-rl critic train`` wrote.

        Raises:
            UserError: no critic, or damaged.
        """
        from vla_rl.config import resolve_path
        from vla_rl.policies.lerobot_folder import load_policy_folder, read_config

        folder = resolve_path(str(path))
        file = folder / NOTES
        if not file.is_file():
            raise UserError(f"{folder} is no critic (no {NOTES}): make one with vla-rl critic train")
        try:
            notes = json.loads(file.read_text())
        except ValueError as error:
            raise UserError(f"{file} is damaged: copy the folder again") from error
        policy = load_policy_folder(folder, read_config(folder, device))[0]
        critic = cls(policy.eval().to(device), notes)
        critic.network.requires_grad_(False)
        return critic

    # ---- the network ------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def words(
        self, prompt: str, tasks: Sequence[str], reference: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens and mask [B, L] of a question about each of ``tasks``, as ``named`` beside a ``reference``.

        Raises:
            UserError: an instruction that is empty or too long.
        """
        for task in set(tasks):
            if not task.strip() or len(task.encode()) > LONGEST:
                raise UserError(
                    f"the instruction {task[:40]!r} has {len(task.encode())} bytes: 1 to {LONGEST}"
                )
        named = self.named(tasks, reference)
        asked = self.tokenizer(
            [prompt.replace("{task}", task) for task in named], padding=True, return_tensors="pt"
        )
        return asked["input_ids"].to(self.device), asked["attention_mask"].bool().to(self.device)

    def look(self, pictures: Tensor) -> Tensor:
        """[n, tokens, D] of pictures uint8 [n, 3, H, W], or float in 0 ... 1."""
        self.check_size(pictures)
        return torch.cat([self.network.look(part.to(self.device)) for part in pictures.split(BATCH)])

    def check_size(self, pictures: Tensor) -> None:
        """Refuse pictures of another size than it was trained on: another camera is another world to it.

        Raises:
            UserError: named.
        """
        checked_size(self.notes, pictures)

    def compared(self, first: Tensor, second: Tensor, reference: Tensor | None = None) -> Tensor:
        """What a question about progress shows, [B, n, tokens, D]: reference, both pictures and, where ``differences`` is noted, what
        changed between them, as the vision tower sees it. A small model finds no way to compare two pictures by itself for thousands
        of steps.

        Args:
            first: looked at, [B, tokens, D].
            second: the same.
            reference: [B, R, tokens, D] or None.
        """
        parts = [first[:, None], second[:, None]]
        if self.notes.get("differences"):
            parts.append((second - first)[:, None])
        return torch.cat(([] if reference is None else [reference]) + parts, 1)

    def answers(self, seen: Tensor, words: tuple[Tensor, Tensor], before: Any = None) -> Tensor:
        """Logits [B, bins] of the answer to questions about pictures already looked at.

        Args:
            seen: [B, n, tokens, D].
            words: of ``words``.
            before: of ``TokenNetwork.remember``, a reference that all of them begin with; None = none.
        """
        return self.network.answer(seen.flatten(1, 2), *words, before)

    def _asked(self, seen: Tensor, words: tuple[Tensor, Tensor], reference: Tensor | None) -> Tensor:
        """``answers`` part by part; the language model reads the reference [R, tokens, D] once."""
        before = None if reference is None else self.network.remember(reference.flatten(0, 1))
        parts = [slice(start, start + BATCH) for start in range(0, len(seen), BATCH)]
        return torch.cat([self.answers(seen[p], (words[0][p], words[1][p]), before) for p in parts])

    def named(self, tasks: Sequence[str], reference: Tensor | None) -> list[str]:
        """The instructions as they are asked about: with a reference, one it was never trained on tells it nothing, and is left out."""
        known = set(self.notes.get("tasks", tasks))
        return [task if reference is None or task in known else AS_SHOWN for task in tasks]

    # ---- questions --------------------------------------------------------------------------------------

    @torch.no_grad()
    def progress(
        self, first: Tensor, second: Tensor, tasks: Sequence[str], reference: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Progress in -1 ... 1 from pictures ``first`` to ``second``, and its standard deviation, [B] each.

        Args:
            first: looked at, [B, tokens, D].
            second: the same.
            tasks: B instructions.
            reference: of an episode that succeeded, looked at, [R, tokens, D]; None = none.
        """
        words = self.words(PROGRESS, tasks, reference)
        logits = self._asked(self.compared(first, second), words, reference)
        return self.expected(logits)

    def expected(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Progress that answers of ``answers`` [B, bins] stand for, and its standard deviation, [B] each."""
        chances = logits.softmax(-1).cpu()
        mean = chances @ self.centres
        return mean, ((chances @ self.centres.square()) - mean.square()).clamp(min=0).sqrt()

    @torch.no_grad()
    def done(self, seen: Tensor, tasks: Sequence[str], reference: Tensor | None = None) -> Tensor:
        """[B] chance that the task is done in pictures already looked at [B, tokens, D]; ``reference`` as ``progress``."""
        words = self.words(DONE, tasks, reference)
        return yes(self._asked(seen[:, None], words, reference)).sigmoid().cpu()

    def describe(self, pictures: Tensor) -> str:
        """The instruction that a video [T, 3, H, W] uint8, of which ``references`` moments are looked at, is an answer to.

        Raises:
            UserError: the critic has not learned to describe, fewer than two pictures, or another size.
        """
        if not self.notes.get("describes"):
            raise UserError(
                "this critic has not learned to describe: train one with train.describe_weight=0.2"
            )
        if len(pictures) < 2:
            raise UserError(f"{len(pictures)} pictures: a description needs at least two")
        moments = reference_moments(len(pictures) - 1, int(self.notes["references"]))
        with torch.no_grad():
            seen = self.look(pictures[moments])
        asked = torch.tensor(self.tokenizer(DESCRIBE)["input_ids"], device=self.device)
        said = self.network.say(seen.flatten(0, 1), asked, self.tokenizer.eos_token_id, SAID)
        return self.tokenizer.decode(said).strip()

    def described(self, tasks: Sequence[str]) -> tuple[Tensor, Tensor, int]:
        """What ``describe`` should be asked and say of ``tasks``: tokens and mask [B, L], and how many of them are the question."""
        asked = self.tokenizer(DESCRIBE)["input_ids"]
        end = [self.tokenizer.eos_token_id]
        rows = [
            asked + self.tokenizer(t, add_special_tokens=False)["input_ids"][: SAID - 1] + end for t in tasks
        ]
        words = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        mask = torch.arange(words.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        return words.to(self.device), mask.to(self.device), len(asked)

    def refer(self, reference: Trajectory) -> Tensor:
        """A reference, looked at [R, tokens, D]: ``references`` moments from beginning to success, evenly apart.

        Raises:
            UserError: it did not succeed, or another size.
        """
        with torch.no_grad():
            return self.look(reference_pictures(self.notes, reference))

    def judge(
        self, pictures: Tensor, task: str, reference: Tensor | None = None, skip: int | None = None
    ) -> Judged:
        """See ``vla_rl.critic.film.judge``."""
        return judge(self, pictures, task, reference, skip)


def yes(logits: Tensor) -> Tensor:
    """Log-odds [B] of the last word against the first: of "done" against "not done"."""
    return logits[:, -1] - logits[:, 0]


def threshold_of(notes: dict[str, Any], task: str) -> float:
    """The chance from which a picture counts as done: the task's own where it was calibrated."""
    return float(notes.get("thresholds", {}).get(task, notes["threshold"]))


def reference_moments(end: int, count: int) -> Tensor:
    """``count`` moments from 0 to ``end``, evenly apart."""
    return torch.linspace(0, end, count).round().long()


def reference_pictures(notes: dict[str, Any], reference: Trajectory) -> Tensor:
    """The moments of a reference that a critic of these ``notes`` is shown, uint8 [R, 3, H, W].

    Raises:
        UserError: it did not succeed, or its pictures have another size.
    """
    if not reference.success:
        raise UserError(f"{reference.name} did not succeed: it cannot be a reference")
    checked_size(notes, reference.pictures)
    return reference.pictures[reference_moments(reference.end, int(notes["references"]))]


def checked_size(notes: dict[str, Any], pictures: Tensor) -> None:
    """Refuse pictures [..., H, W] of another size than a critic of these ``notes`` was trained on.

    Raises:
        UserError: named.
    """
    size = list(pictures.shape[-2:])
    if (want := notes.get("image")) and size != list(want):
        raise UserError(f"pictures of {size[0]}x{size[1]}, the critic was trained on {want[0]}x{want[1]}")
