"""On-policy distillation of a token policy (VLA-OPD, arXiv 2603.26666): the student acts, a frozen teacher says what it would have said.

The teacher scores the words of the student's own chunks, all decisions of an iteration in a few batched passes. Objectives, per
word, S the student and T the teacher:

- ``reverse``: KL(S || T) exactly over the vocabulary. The paper and RLinf estimate it from the one word that was drawn; with a few
  hundred bins the sum costs nothing and has no variance.
- ``reverse_sampled``: theirs, the policy gradient with -(log S - log T) of the drawn word as its reward.
- ``forward``: KL(T || S): covers all that the teacher might do; the entropy grows.
- ``hard``: cross-entropy with the teacher's likeliest word; the entropy collapses.

A teacher that has no words (diffusion, flow, a residual, whatever acts) is asked for its action, which becomes a narrow Gaussian
over the student's bins. ``forward`` and ``hard`` then follow the teacher's words: what comes after the student's own says nothing
about an action that was decided as a whole. How likely the student's own words have become is not worked out then, which would
take as long again, and ``target_kl`` does not end an iteration (with ``reward_weight`` both happens).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.algorithms.disagreement import disagreement, followed
from vla_rl.algorithms.held_out import HeldOut, datasets_of
from vla_rl.algorithms.token_ppo import TokenPPO, TokenPPOConfig
from vla_rl.data.ring import Ring
from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.policies.action_tokens import kl
from vla_rl.policies.advised import Shown
from vla_rl.policies.base import Policy
from vla_rl.policies.taught import Taught, has_words
from vla_rl.policies.watched import Watched, looks

OBJECTIVES = ("reverse", "reverse_sampled", "forward", "hard")

TEACHER_BATCH = 256
"""Decisions per pass of the teacher."""


@dataclass
class OPDConfig(TokenPPOConfig):
    """Settings, with those of ``TokenPPOConfig``, whose clipping, ratio and critic count only with ``reward_weight``, ``entropy`` and
    ``base_kl`` not at all.

    Attributes:
        objective: see the module's docstring.
        first_objective: of the first ``first_iterations``, e.g. ``forward`` for a student that hardly ever does what the
            teacher does; None = ``objective`` from the start.
        first_iterations: how many.
        reward_weight: of token PPO's loss on the environment's reward beside the teacher's; 0 = the teacher alone.
        ratio_cap: drawn words are weighted by how much likelier they have become within the iteration, up to this
            (``reverse_sampled``; the exact objectives need no correction of their words).
        memory: decisions of this and earlier iterations that an iteration's updates draw from, as many updates as its own
            ask for: what the teacher says in a state stays true whoever came there (DAgger, arXiv 1011.0686). 0 = this
            iteration's alone.
        ask_every: a wordless teacher is also asked at every so manieth step within a chunk, and what it says is kept in ``memory``,
            which then counts states: more of them, of as many episodes, for a picture each. 0 = only where a chunk begins.
        samples: draws of a wordless teacher's action per state.
        teacher_blur: least deviation of a wordless teacher's Gaussian; the student's words cover -1..1. Much
            narrower than a word's own spread, it makes ``reverse`` explode.
        held_out: LeRobotDataset, e.g. of tasks that are not distilled: ``forgotten`` among the metrics is KL(base, student) in its
            states, once per iteration. None = off.
        held_out_states: how many of its states.
        rehearsal: LeRobotDatasets (one, or a list) of what the student is to stay able to do, e.g. of tasks that nobody teaches:
            every update also draws it to what it said there before (KL(base, student); learning without forgetting, arXiv 1606.09282,
            on recorded states). None = off.
        rehearsal_states: how many states of each.
        rehearsal_batch: how many of all of them beside each update's decisions.
        rehearsal_weight: of that divergence in the loss.
    """

    epochs: int = 2
    critic_updates: int = 0
    actor_lr: float = 1e-4
    ratio: str = "token"
    objective: str = "reverse"
    first_objective: str | None = None
    first_iterations: int = 0
    reward_weight: float = 0.0
    ratio_cap: float = 2.0
    memory: int = 0
    ask_every: int = 0
    samples: int = 1
    teacher_blur: float = 0.1
    held_out: str | None = None
    held_out_states: int = 128
    rehearsal: Any = None
    rehearsal_states: int = 1000
    rehearsal_batch: int = 32
    rehearsal_weight: float = 1.0


class OPD(TokenPPO):
    """See the module's docstring.

    Args:
        config: settings.
        base: ``OpenLoop`` over the student, a policy with action tokens; a copy learns.
        teacher: a policy, frozen; if it has action tokens, of the same vocabulary and normalisation. None = only to act with
            what was learned.
        env_spec: the environment's dimensions.
        num_envs: environment rows whose frames will come.
        device: of the critic; the policies are where they were loaded.

    Raises:
        UserError: a base without action tokens, a teacher whose words mean other actions, or a setting that does not fit.
    """

    needs = "distillation needs a token policy"

    def __init__(
        self,
        config: OPDConfig,
        base: Policy,
        teacher: Policy | None,
        env_spec: EnvSpec,
        num_envs: int,
        device: str = "cpu",
    ) -> None:
        for name in (config.objective, config.first_objective or config.objective):
            if name not in OBJECTIVES:
                raise UserError(f"algorithm.objective={name}: choose from {', '.join(OBJECTIVES)}")
        if config.memory and (
            config.reward_weight or "reverse_sampled" in (config.objective, config.first_objective)
        ):
            raise UserError(
                f"algorithm.memory={config.memory}: reward and reverse_sampled learn from words that were just drawn; set memory=0, "
                "or reward_weight=0 and an exact objective"
            )
        if config.drawn_steps:
            raise UserError(
                f"algorithm.drawn_steps={config.drawn_steps} is of token PPO: here every word is learned; set 0"
            )
        check_asking(config, teacher)
        super().__init__(config, base, env_spec, num_envs, device)
        self.memory = Ring(config.memory)
        self.learns_value &= config.reward_weight > 0
        self.held_out = self.rehearsal = None
        if teacher is not None and config.held_out:
            self.held_out = HeldOut(self.actor, datasets_of(config.held_out), config.held_out_states)
        if teacher is not None and config.rehearsal:
            if config.rehearsal_batch < 1 or config.rehearsal_weight < 0:
                raise UserError(
                    f"algorithm.rehearsal_batch={config.rehearsal_batch} must be at least 1 and algorithm.rehearsal_weight="
                    f"{config.rehearsal_weight} at least 0"
                )
            asked = datasets_of(config.rehearsal), config.rehearsal_states, "rehearsal"
            self.rehearsal = HeldOut(self.actor, *asked)
        self.forgotten = torch.zeros(())
        self.apart: dict[str, Tensor] = {}
        if teacher is not None:
            self.taught: Taught | Shown = (
                Taught(self.actor, teacher)
                if has_words(teacher)
                else Shown(self.actor, teacher, config.samples, config.teacher_blur)
            )
            self.explore(self.taught)

    def explore(self, policy: Policy) -> None:
        """As ``ChunkPPO``, with ``ask_every`` looking again within chunks."""
        super().explore(policy)
        if (every := self.config.ask_every) and isinstance(policy, Shown):
            horizon, decisions = self.policy.horizon, self.decisions
            decisions.between, decisions.places = ("condition", *policy.notes), looks(horizon, every)
            self.policy = Watched(policy, horizon, every, decisions.decided, decisions.noticed)

    def _prepare(self) -> None:
        super()._prepare()
        assert self.batch is not None
        between: Any = self.batch.pop("between", None)
        self._teach(self.batch)
        self.apart = disagreement(self.actor, self.batch, isinstance(self.taught, Shown))
        if self.config.memory:
            decided = self.batch.exclude("observation", "next_observation")
            self.memory.append(decided)
            if between is not None and between["there"].any():
                seen = between.auto_batch_size_(2)[between["there"]].exclude("there")
                self._teach(seen)
                # Nothing was decided in these states: of what else is kept there is nothing.
                more: Any = decided[:1].expand(len(seen)).clone().zero_().update(seen)
                more["own"] = torch.ones_like(more["own"])
                self.memory.append(more)
            self.batch = self.memory.rows[: len(self.memory)]
        if self.held_out is not None:
            self.forgotten = self.held_out.moved()

    def _teach(self, states: TensorDict) -> None:
        """What the teacher has to say in ``states`` [N], in place of the notes that it says it from."""
        scored = [self.taught.teach(part) for part in states.split(TEACHER_BATCH)]
        states["teacher"] = torch.cat(scored).half().cpu()
        for name in self.taught.notes:
            del states[name]

    def save(self, folder: Path, *, replay: bool = True) -> None:
        """As ``ChunkPPO``, with the decisions that are kept."""
        super().save(folder, replay=replay)
        if replay and self.config.memory:
            self.memory.save(folder / "memory")

    def load(self, folder: Path, *, replay: bool = True) -> None:
        """Read what ``save`` wrote."""
        super().load(folder, replay=replay)
        if replay and self.config.memory:
            self.memory.load(folder / "memory")

    @property
    def objective(self) -> str:
        """Of this iteration."""
        config = self.config
        early = self.iteration < config.first_iterations
        return config.first_objective if early and config.first_objective else config.objective

    def actor_loss_of(self, which: Tensor, unit: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective on the decisions ``which`` [B], averaged over words; ``unit`` is 0 for all."""
        config, batch = self.config, self.batch
        assert batch is not None
        device = next(self.actor.network.parameters()).device
        tokens, there = batch["tokens"][which].to(device), batch["teacher"][which].to(device).float()
        heard = there.shape[1]  # a teacher of shorter chunks says nothing of the later words
        follows = isinstance(self.taught, Shown) and self.objective in ("forward", "hard")
        old = new = None
        if config.reward_weight or not follows:
            _, old, new, entropy, logits = self.said(which)
        if follows:
            _, entropy, logits = self.actor.evaluate(
                batch["condition"][which].to(device), followed(there, tokens)
            )
        here = logits[:, :heard].log_softmax(-1)
        own = batch["own"][which].to(logits)[:, None]  # what a person did says nothing of these words
        before = old if old is None else old[:, :heard]
        each = distilled(self.objective, here, there, tokens[:, :heard], before, config.ratio_cap)
        loss = (each * own * self.actor.words.said(tokens)[:, :heard]).mean()
        with torch.no_grad():
            metrics = {
                "entropy": entropy.mean(),
                "reverse_kl": kl(here, there).mean(),
                "agreement": (here.argmax(-1) == there.argmax(-1)).float().mean(),
            } | self.apart
            if old is not None and new is not None:
                metrics["approx_kl"] = ((new - old).exp() - 1 - (new - old)).mean()
        if self.held_out is not None:
            metrics["forgotten"] = self.forgotten
        if self.rehearsal is not None:
            again = torch.randint(len(self.rehearsal), (config.rehearsal_batch,), generator=self.generator)
            apart = self.rehearsal.apart(again).mean()
            loss = loss + config.rehearsal_weight * apart
            metrics["rehearsal_kl"] = apart.detach()
        if config.reward_weight and old is not None and new is not None:
            more, found = self.rewarded_loss(which, old, new)
            loss = loss + config.reward_weight * more
            metrics |= found
        return loss, metrics


def check_asking(config: OPDConfig, teacher: Policy | None) -> None:
    """Refuse ``ask_every`` where nothing is learned from states in which the student said nothing.

    Raises:
        UserError: naming the setting.
    """
    if not config.ask_every:
        return
    objectives = {config.objective, config.first_objective or config.objective}
    if config.ask_every < 0 or not config.memory or objectives - {"forward", "hard"}:
        raise UserError(
            f"algorithm.ask_every={config.ask_every} is for objective=forward or hard with memory above 0: the student says nothing "
            "within a chunk, and what the teacher says there is kept in memory"
        )
    if teacher is not None and has_words(teacher):
        raise UserError(
            f"algorithm.ask_every={config.ask_every} is for teachers that act: one with words scores the student's; set 0"
        )


def distilled(
    objective: str, here: Tensor, there: Tensor, tokens: Tensor, old: Tensor | None, cap: float
) -> Tensor:
    """What is to be made small, per word [B, N].

    Args:
        objective: of ``OBJECTIVES``.
        here: the student's log-probabilities of every word [B, N, bins], with gradients.
        there: the teacher's.
        tokens: words that the student drew [B, N].
        old: their log-probabilities when they were drawn [B, N]; only ``reverse_sampled`` needs them.
        cap: most that a drawn word counts.
    """
    if objective == "reverse":
        return kl(here, there)
    if objective == "forward":
        return kl(there, here)
    if objective == "hard":
        return -here.gather(-1, there.argmax(-1, keepdim=True)).squeeze(-1)
    drawn = here.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    wanted = there.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    assert old is not None
    weight = (drawn - old).exp().clamp(max=cap).detach()
    return -weight * (wanted - drawn).detach() * drawn
