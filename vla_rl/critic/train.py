"""A token VLA learns to judge: progress of pairs by cross-entropy over its words, done by their outermost two."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vla_rl.algorithms.checkpoint import load_learner, save_learner
from vla_rl.algorithms.descent import descend
from vla_rl.critic.augment import augmented, disguised
from vla_rl.critic.labels import done_label, soft_words
from vla_rl.critic.metrics import calibrated, finding
from vla_rl.critic.model import DONE, NOTES, PROGRESS, Critic, yes
from vla_rl.critic.pairs import PAIRS, PairConfig, Pairs, Questions
from vla_rl.critic.trajectories import Trajectory
from vla_rl.errors import NonFiniteError, UserError
from vla_rl.nn.step_size import warmed_cosine
from vla_rl.policies.inside import copy_inside
from vla_rl.policies.lerobot_folder import load_policy_folder, local_folder, read_config
from vla_rl.policies.nano import save_policy
from vla_rl.pretrain_data import Samples
from vla_rl.runtime import checkpoints
from vla_rl.runtime.metrics import write_json

LEAST_CHANCE = 0.5
"""Lowest threshold of done: a few episodes may not show what would be called done below it."""


@dataclass
class CriticConfig:
    """Settings.

    Attributes:
        start: folder of a ``token_vla`` whose weights to begin from (``vla-rl pretrain type=token_nano ...``).
        steps: optimiser steps.
        batch_size: draws per step, of four pairs and one picture each.
        lr: peak AdamW step size; cosine to 2 % after ``warmup`` steps.
        warmup: linear warm-up steps.
        weight_decay: AdamW's.
        grad_clip: maximal gradient norm; 0 = none.
        pairs: what is drawn (``vla_rl.critic.pairs.PairConfig``).
        differences: show beside two pictures what changed between them (``Critic.compared``); a published model may do without.
        width: standard deviation of an answer over the words, in progress.
        done_weight: of the question whether all is done.
        act_weight: of cloning the data's actions beside, so that the model goes on acting; 0 = it forgets how to.
        describe_weight: of saying the instruction of a video; 0 = the critic does not describe.
        shift: pixels of random shift.
        light: random change of brightness and contrast.
        held_out: share of each task's episodes kept to calibrate the threshold of done.
        recall: of done on all of them: thresholds are as high as it allows.
        precision: of done on those of a task, for which its threshold is higher where it has to be.
        seed: of draws.
        save_every: steps between checkpoints.
    """

    start: str = ""
    steps: int = 4000
    batch_size: int = 16
    lr: float = 5e-4
    warmup: int = 100
    weight_decay: float = 1e-4
    grad_clip: float = 1.0
    pairs: PairConfig = field(default_factory=PairConfig)
    differences: bool = True
    width: float = 0.05
    done_weight: float = 1.0
    act_weight: float = 0.0
    describe_weight: float = 0.0
    shift: int = 3
    light: float = 0.1
    held_out: float = 0.1
    recall: float = 0.97
    precision: float = 0.98
    seed: int = 0
    save_every: int = 500


class CriticTrainer:
    """One run, resumable bit for bit on CPU.

    Args:
        config: settings.
        trajectories: what is judged, already read.
        out: folder to be, written whole at the end.
        actions: samples to clone beside, where ``act_weight`` is set.

    Raises:
        UserError: ``out`` is taken, no such start, or settings that mean nothing.
    """

    def __init__(
        self,
        config: CriticConfig,
        trajectories: Sequence[Trajectory],
        out: Path,
        actions: Samples | None = None,
    ) -> None:
        if out.exists():
            raise UserError(f"{out} exists: choose another out=")
        if not config.start:
            raise UserError(
                "train.start names no policy: make a token VLA with vla-rl pretrain type=token_nano"
            )
        for name in ("steps", "batch_size", "save_every"):
            if getattr(config, name) < 1:
                raise UserError(f"train.{name}={getattr(config, name)} must be at least 1")
        if not 0 <= config.held_out < 1:
            raise UserError(f"train.held_out={config.held_out} must be in [0, 1)")
        self.config, self.out, self.actions = config, out, actions
        self.work = out.with_name(f".{out.name}.training")
        self.source = local_folder(config.start)
        torch.manual_seed(config.seed)
        self.policy, self.before, self.after = load_policy_folder(self.source, read_config(self.source))
        learning, self.kept = split(trajectories, config.held_out, config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.draws = Pairs(learning, config.pairs, self.generator)
        self.critic = Critic(self.policy, self._notes(0.5))
        self.policy.train()
        self.policy.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(),
            lr=config.lr,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.95),
            fused=True,
        )
        self.step = 0

    def _notes(self, threshold: float) -> dict[str, Any]:
        pairs = self.config.pairs
        return {
            "image": list(self.draws.frames.size),
            "skip": pairs.skip,
            "references": pairs.references,
            "differences": self.config.differences,
            "describes": self.config.describe_weight > 0,
            "threshold": threshold,
            "tasks": self.draws.tasks,
            "settings": asdict(self.config) | {"start": Path(self.config.start).name},
        }

    def resume(self) -> bool:
        """Continue where an interrupted run of the same settings stopped; False: there is none.

        Raises:
            UserError: it was begun with other settings, or is damaged.
        """
        checkpoints.recover(self.work)
        newest = checkpoints.latest(self.work)
        if newest is None:
            return False
        counters = load_learner(newest, *self._parts())
        if counters["settings"] != self._settings():
            raise UserError(
                f"{self.work} was begun with other settings or data: remove it, or choose another out="
            )
        self.step = counters["step"]
        self.draws.belief = torch.tensor(counters["belief"])
        return True

    def _parts(self) -> tuple[Any, Any, Any]:
        return {"policy": self.policy}, {"adam": self.optimizer}, {"draws": self.generator}

    def _settings(self) -> dict[str, Any]:
        settings = asdict(self.config) | {"frames": len(self.draws.frames)}
        del settings["save_every"]
        return json.loads(json.dumps(settings))

    def learn(self, progress: Callable[[int, dict[str, float]], None] | None = None) -> None:
        """Train to the end and write ``out``; ``progress(step, losses)``.

        Raises:
            NonFiniteError: a loss is NaN or infinite; the last checkpoint is kept.
        """
        config = self.config
        while self.step < config.steps:
            parts = self.losses(self.draws.draw(config.batch_size))
            loss: Any = parts["progress"] + config.done_weight * parts["done"]
            if config.act_weight:
                loss = loss + config.act_weight * parts["act"]
            if config.describe_weight:
                loss = loss + config.describe_weight * parts["describe"]
            if not torch.isfinite(loss):
                raise NonFiniteError(
                    f"the critic's loss is {loss.item()} at step {self.step + 1}: lower train.lr"
                )
            for group in self.optimizer.param_groups:
                group["lr"] = warmed_cosine(config.lr, config.warmup, self.step, config.steps)
            descend(self.optimizer, loss, config.grad_clip)
            self.step += 1
            if progress is not None:
                progress(self.step, {name: value.item() for name, value in parts.items()})
            if self.step % config.save_every == 0:
                checkpoints.save(self.work, self.step, self._write, keep=1)
        self.finish()

    def _write(self, folder: Path) -> None:
        counters = {"step": self.step, "settings": self._settings(), "belief": self.draws.belief.tolist()}
        save_learner(folder, *self._parts(), counters)

    def losses(self, asked: Questions) -> dict[str, Tensor]:
        """``progress`` (cross-entropy per pair), ``done``, and ``act`` and ``describe`` where they are learned too."""
        config, critic, frames = self.config, self.critic, self.draws.frames
        each = len(asked.pictures) // len(asked.moments)
        guises = asked.guises.repeat_interleave(each)
        looked = [
            self._look(frames[asked.moments], asked.guises),
            self._look(frames[asked.pictures][:, None], guises),
        ]
        shown: list[Tensor | None] = [None, None]
        if asked.references is not None:
            reference = self._look(frames[asked.references], asked.guises)
            shown = [reference, reference.repeat_interleave(each, 0)]
        pairs = [critic.compared(looked[0][:, one], looked[0][:, other], shown[0]) for one, other in PAIRS]
        logits = critic.answers(torch.cat(pairs), critic.words(PROGRESS, asked.tasks * len(PAIRS)))
        if asked.references is None:
            said = critic.expected(logits.detach())[0].unflatten(0, (len(PAIRS), -1))
            self.draws.believed(asked, said.abs().mean(0))
        wanted = soft_words(asked.progress.t().flatten(), critic.bins, config.width).to(logits.device)
        out = {"progress": functional.cross_entropy(logits, wanted)}
        seen = looked[1] if shown[1] is None else torch.cat([shown[1], looked[1]], 1)
        chances = yes(critic.answers(seen, critic.words(DONE, asked.done_tasks)))
        out["done"] = functional.binary_cross_entropy_with_logits(chances, asked.done.to(chances))
        if config.act_weight:
            assert self.actions is not None
            out["act"] = self._act(len(asked.moments))
        if config.describe_weight:
            out["describe"] = self._describe(max(1, len(asked.moments) // 2))
        return out

    def _look(self, pictures: Tensor, guises: Tensor | None = None) -> Tensor:
        seen = augmented(pictures, self.config.shift, self.config.light, self.generator)
        seen = seen if guises is None else disguised(seen, guises)
        return self.critic.look(seen.flatten(0, 1)).unflatten(0, pictures.shape[:2])

    def _describe(self, count: int) -> Tensor:
        """Cross-entropy per token of the instructions of ``count`` videos."""
        frames, tasks = self.draws.videos(count)
        words, mask, question = self.critic.described(tasks)
        seen = self._look(self.draws.frames[frames]).flatten(1, 2)
        logits = self.critic.network.text_logits(seen, words, mask)[:, question:]
        each = functional.cross_entropy(logits.transpose(1, 2), words[:, question:], reduction="none")
        return each[mask[:, question:]].mean()

    def _act(self, count: int) -> Tensor:
        samples = self.actions
        assert samples is not None
        pick = torch.randint(len(samples.last), (count,), generator=self.generator)
        raw, pad = samples.batch(pick, list(self.policy.config.action_delta_indices))
        batch = self.before(raw)
        batch["action_is_pad"] = pad
        return self.policy.forward(batch)[0]

    def finish(self) -> None:
        """The folder, its threshold calibrated on the episodes that were kept."""
        self.policy.eval()
        threshold, each = thresholds(self.critic, self.kept, self.config.precision, self.config.recall)
        new = self.out.with_name(f".{self.out.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        copy_inside(self.source, new)
        self.policy.config.pretrained_path = None  # where it began is no part of the folder
        save_policy(new, self.policy, self.before, self.after)
        write_json(new / NOTES, self._notes(threshold) | {"thresholds": each})
        new.rename(self.out)
        shutil.rmtree(self.work, ignore_errors=True)


def split(
    trajectories: Sequence[Trajectory], share: float, seed: int
) -> tuple[list[Trajectory], list[Trajectory]]:
    """(to learn from, kept): ``share`` of each task's trajectories are kept, successes and failures alike."""
    generator = torch.Generator().manual_seed(seed)
    kept: set[int] = set()
    for task in sorted({t.task for t in trajectories}):
        for success in (True, False):
            group = [i for i, t in enumerate(trajectories) if t.task == task and t.success == success]
            order = torch.randperm(len(group), generator=generator).tolist()
            kept |= {group[i] for i in order[: round(share * len(group))]}
    learning = [t for i, t in enumerate(trajectories) if i not in kept]
    return learning, [t for i, t in enumerate(trajectories) if i in kept]


def calibrate(
    path: Path, trajectories: Sequence[Trajectory], precision: float, recall: float
) -> dict[str, float]:
    """Set a critic's thresholds of done on episodes that it has not seen, failures among them; returns those of the tasks.

    Args:
        path: its folder, whose notes are rewritten.
        trajectories: of the tasks to calibrate; the others keep theirs.
        precision: that "done" should have on each task's.
        recall: that it should have on all of them.
    """
    critic = Critic.load(path)
    overall, each = thresholds(critic, trajectories, precision, recall)
    notes = critic.notes | {"threshold": overall, "thresholds": critic.notes.get("thresholds", {}) | each}
    write_json(path / NOTES, notes)
    return each


def thresholds(
    critic: Critic, trajectories: Sequence[Trajectory], precision: float, recall: float
) -> tuple[float, dict[str, float]]:
    """The threshold of done for all tasks together, and for each task that has episodes of its own here.

    A task's few episodes show little of what might be taken for done, so its threshold does not stand right above the worst of
    them: at least as high as all tasks' recall allows.
    """
    if not trajectories:
        return LEAST_CHANCE, {}
    tasks = sorted({t.task for t in trajectories})
    parts = {task: done_of(critic, [t for t in trajectories if t.task == task]) for task in tasks}
    together = [torch.cat(column) for column in zip(*parts.values(), strict=True)]
    least = max(LEAST_CHANCE, finding(*together, recall))
    each = {task: calibrated(*part, precision, least) for task, part in parts.items() if part[1].any()}
    return calibrated(*together, precision, least), each


def done_of(critic: Critic, trajectories: Sequence[Trajectory]) -> tuple[Tensor, Tensor]:
    """Chance and truth of every moment that the paper measures done on: not those between 80 % of the way and success."""
    chances, truth = [], []
    for each in trajectories:
        moments = torch.arange(len(each))
        end, success = torch.full_like(moments, each.end), torch.full((len(each),), each.success)
        label = done_label(moments, end, success)
        known = (~label.isnan()).nonzero().flatten()
        with torch.no_grad():
            seen = critic.look(each.pictures[known])
        chances.append(critic.done(seen, [each.task] * len(known)))
        truth.append(label[known] > 0.5)
    return torch.cat(chances), torch.cat(truth)
