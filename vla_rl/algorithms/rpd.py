"""Refined policy distillation (RPD, arXiv 2503.05833): PPO with a teacher's action in the loss.

The student explores for itself and is rewarded by the environment; beside PPO's loss its mean action is drawn towards what a
teacher, a large VLA for instance, would have done in the states that the student visits. So it learns faster than by reward alone
and is not held at the teacher's level. The authors ask the teacher again in each epoch; here it is asked once per state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vla_rl.algorithms.dppo import DPPO, DPPOConfig
from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.policies.advised import Advised, units_of
from vla_rl.policies.base import Policy
from vla_rl.policies.denoising import log_prob

LOSSES = ("mse", "l1", "bc", "kl")


@dataclass
class RPDConfig(DPPOConfig):
    """Settings, with those of ``DPPOConfig``; only the last denoising step of a student that has several is drawn to the teacher.

    Attributes:
        loss: ``mse`` or ``l1`` between the student's and the teacher's action (normalised, averaged over elements); ``bc``: minus
            the log-density of the teacher's; ``kl``: from the student's Gaussian to the one of ``samples`` draws of the
            teacher. The paper found mse > l1 >> bc > kl.
        weight: of it beside PPO's loss, lambda.
        anneal_steps: environment steps over which the weight falls to 0 along a cosine; None = it stays.
        samples: draws of the teacher's action per state, at least 2 for ``kl``.
    """

    critic_warmup: int = 0
    clip: float = 0.05
    clip_first: float = 0.01
    loss: str = "mse"
    weight: float = 1.0
    anneal_steps: int | None = None
    samples: int = 1


class RPD(DPPO):
    """See the module's docstring.

    Args:
        config: settings.
        base: ``OpenLoop`` over the student, a Gaussian (``gaussian_nano``, ``act``), diffusion or flow policy; a copy learns.
        teacher: any policy for the same environment, frozen; None = only to act with what was learned.
        env_spec: the environment's dimensions.
        num_envs: environment rows whose frames will come.
        device: of the critic; the policies are where they were loaded.

    Raises:
        UserError: a teacher or a setting that does not fit.
    """

    def __init__(
        self,
        config: RPDConfig,
        base: Policy,
        teacher: Policy | None,
        env_spec: EnvSpec,
        num_envs: int,
        device: str = "cpu",
    ) -> None:
        if config.loss not in LOSSES:
            raise UserError(f"algorithm.loss={config.loss}: choose from {', '.join(LOSSES)}")
        if config.loss == "kl" and config.samples < 2:
            raise UserError(
                "algorithm.loss=kl compares distributions: set algorithm.samples=10, say (it is 1)"
            )
        if config.weight < 0 or (config.anneal_steps is not None and config.anneal_steps < 1):
            raise UserError(
                f"algorithm.weight={config.weight} anneal_steps={config.anneal_steps}: 0 <= weight, 1 <= anneal_steps"
            )
        super().__init__(config, base, env_spec, num_envs, device)
        if teacher is not None:
            self.advised = Advised(self.actor, teacher, units_of(self.actor), config.samples)
            self.explore(self.advised)

    @property
    def weight(self) -> float:
        """Lambda of now."""
        config = self.config
        if config.anneal_steps is None:
            return config.weight
        share = min(1.0, self.steps / config.anneal_steps)
        return config.weight * (0.5 * math.cos(math.pi * share) + 0.5)

    def beside(
        self, now: Any, which: Tensor, unit: Tensor, log_ratio: Tensor
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """How far the student is from the teacher, weighted."""
        batch, weight, last = self.batch, self.weight, (unit == self.units - 1).to(log_ratio.device)
        if not weight or not last.any():
            return 0.0, {}
        assert batch is not None
        mean, std = (each[self.actor.part] for each in now.likeliest)
        moves = self.advised.moves.to(mean.device)
        length = self.advised.length
        away = distance(
            self.config.loss,
            mean[:, :length][:, moves],
            std[:, :length][:, moves],
            batch["advice"][which].to(mean)[:, moves],
            batch["advice_std"][which].to(mean)[:, moves].clamp(min=self.config.min_std),
        )
        if (
            self.config.loss == "kl"
        ):  # the paper's weight of a state by how much likelier its action has become
            away = away * log_ratio.exp().clamp(min=1 - self.config.clip)
        away = (away * last).sum() / last.sum()
        return weight * away, {"from_teacher": away.detach(), "teacher_weight": torch.tensor(weight)}


def distance(kind: str, mean: Tensor, std: Tensor, theirs: Tensor, their_std: Tensor) -> Tensor:
    """[B] between the student's Gaussian and the teacher's action or Gaussian, averaged over elements.

    Args:
        kind: of ``LOSSES``.
        mean: the student's [B, n].
        std: the student's.
        theirs: the teacher's mean.
        their_std: the teacher's, which only ``kl`` looks at.
    """
    if kind == "mse":
        each = (mean - theirs).square()
    elif kind == "l1":
        each = (mean - theirs).abs()
    elif kind == "bc":
        each = -log_prob(theirs, mean, std)
    else:  # the reference gives deviations where covariances are wanted
        away = (std.square() + (mean - theirs).square()) / their_std.square()
        each = (away - 1) / 2 + (their_std / std).log()
    return each.mean(1)
