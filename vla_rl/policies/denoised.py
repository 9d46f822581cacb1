"""A diffusion or flow policy whose last denoising steps are those of a trained copy (DPPO, arXiv 2409.00588)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from vla_rl.errors import UserError
from vla_rl.policies.base import Observation, Policy
from vla_rl.policies.capabilities import Denoising
from vla_rl.policies.denoising import log_prob
from vla_rl.policies.gaussian_head import MixtureHead
from vla_rl.policies.heads import HAVE_HEADS, gaussian_of
from vla_rl.policies.step import Step

LOG_PROB_BOUNDS = (-5.0, 2.0)
"""Elementwise log-densities are clamped to this before they are averaged (DPPO's code)."""


class Denoised:
    """Chunks [B, T, A] from K denoising steps: the first K - K' by the frozen base, the last K' by ``network``.

    Sampling, each of the trained steps is a Gaussian whose standard deviation is at least ``min_std``; the frozen steps
    are the base's own. Deterministic, only that floor is gone: every step is the sampler's at ``eval_eta``, as in the
    authors' code. At 0 and with an untrained copy, or with K' = 0, it is the base sampled by DDIM or Euler; but what
    was trained with an ancestral sampler's noise fails without it (83 against 98 % on a window opened in five steps).

    A base that regresses its chunk has one step, all trained: a Gaussian, or a mixture of them, around the chunk.

    Args:
        base: a policy with the ``Denoising`` capability.
        steps: K; None = as saved.
        trained: K', of them; None = all.
        eta: 0 (deterministic sampler) to 1 (ancestral) while exploring.
        eval_eta: the same when deterministic; None = ``eta``.
        min_std: least standard deviation of a trained step, in normalised actions.
        max_noise: draws of the standard normal are clamped to this.
        correlation: between any two steps of a chunk, of the noise at the last denoising step; 0 = white.
        executed: H, steps of each chunk that are carried out; only they count in log-probabilities.
        generator: of the noise while exploring; otherwise, as all policies, torch's own.

    Raises:
        UserError: a base without denoising steps, or more trained steps than it has.
    """

    def __init__(
        self,
        base: Policy,
        *,
        steps: int | None = None,
        trained: int | None = None,
        eta: float = 1.0,
        eval_eta: float | None = None,
        min_std: float = 0.1,
        max_noise: float = 3.0,
        correlation: float = 0.0,
        executed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(base, Denoising):
            raise UserError(
                f"{type(base).__name__} has no denoising steps: choose a LeRobot policy of type {', '.join(HAVE_HEADS)}"
            )
        self.base, self.head = base, base.head
        self.chain = self.head.chain(steps)
        trained = self.chain.steps if trained is None else trained
        if not 0 <= trained <= self.chain.steps:
            raise UserError(
                f"algorithm.trained_steps={trained}: the policy denoises in {self.chain.steps} steps "
                "(algorithm.denoising_steps sets how many)"
            )
        self.trained, self.eta, self.min_std, self.max_noise = trained, eta, min_std, max_noise
        self.eval_eta = eta if eval_eta is None else eval_eta
        self.generator = generator
        self.spec = replace(base.spec)
        self.executed = executed = base.spec.chunk_length if executed is None else executed
        self.part = (
            slice(None),
            slice(self.head.first, self.head.first + executed),
            slice(base.spec.action_dim),
        )
        """Of x [B, T', A']: what is carried out."""
        if not 0 <= correlation < 1:
            raise UserError(f"algorithm.noise_correlation={correlation}: from 0 (white) to below 1")
        self.mixing = _mixing(executed, correlation) if correlation else None
        self.network: nn.Module = self.head.copy() if trained else self.head.network
        self.learned: nn.Module = self.network
        """What ``evaluate`` calls: the same weights, perhaps compiled."""
        self.network.eval()  # dropout would make the probability of an action another one than it was drawn with

    def compile(self) -> None:
        """Let torch compile the trained network's passes in ``evaluate``: the first ones then take a minute or two."""
        learned: Any = torch.compile(self.network)
        self.learned = learned

    @property
    def frozen(self) -> int:
        """K - K'."""
        return self.chain.steps - self.trained

    def initial_state(self, batch_size: int) -> TensorDict:
        """The base's."""
        return self.base.initial_state(batch_size)

    def needs_images(self, state: TensorDict) -> Tensor:
        """The base's."""
        return self.base.needs_images(state)

    def act(
        self, observation: Observation, state: TensorDict, *, deterministic: bool = False
    ) -> tuple[TensorDict, TensorDict]:
        """``action`` [B, T, A]; exploring also ``chain`` [B, K' + 1, T', A'], ``log_prob`` [B, K'], ``condition``."""
        condition, state = self.base.encode(observation, state)
        count = state.batch_size[0]
        noise = self._noise((count, *self.head.shape), None if deterministic else self.generator)
        with torch.no_grad():
            output = self.sample(condition, noise, deterministic=deterministic)
        output["action"] = self.base.actions_of(output.pop("x"))
        return output, state

    def sample(self, condition: TensorDict, noise: Tensor, *, deterministic: bool) -> TensorDict:
        """``x`` [B, T', A'], the denoised chunk in normalised units, and what ``act`` gives beside the action.

        Args:
            condition: from the base's ``encode`` [B].
            noise: where the chain begins [B, T', A'].
            deterministic: without exploration.
        """
        x, chain, probabilities = noise, [], []
        eta = self.eval_eta if deterministic else self.eta
        generator = None if deterministic else self.generator
        for step in range(self.chain.steps):
            ours = step >= self.frozen
            if ours:
                chain.append(x)
            network = self.network if ours else self.head.network
            drawn_from = self.step_at(network, x, torch.full((len(x),), step), condition, eta)
            last = step == self.chain.steps - 1
            if deterministic and (last or not eta):
                x = drawn_from.centre
                continue
            if ours and not deterministic:
                drawn_from = drawn_from.at_least(self.min_std)
            mean, std = drawn_from.one_of_them(generator)
            noise = self._noise(x.shape, generator).clamp(-self.max_noise, self.max_noise)
            if ours and last and self.mixing is not None:
                noise[self.part] = torch.einsum("ts,bsa->bta", self.mixing.to(noise), noise[self.part])
            x = mean + std * noise
            if ours and not deterministic:
                probabilities.append(self.mean_log_prob(x, drawn_from, torch.full((len(x),), last)))
        parts: dict[str, Any] = {"x": x}
        if not deterministic:
            parts |= {"condition": condition}
            if self.trained:
                parts |= {"chain": torch.stack([*chain, x], 1), "log_prob": torch.stack(probabilities, 1)}
        return TensorDict(parts, batch_size=[len(x)])

    def step_at(self, network: nn.Module, x: Tensor, step: Tensor, condition: TensorDict, eta: float) -> Step:
        """What the step ``step`` [B] at ``x`` [B, T', A'] draws from."""
        if isinstance(self.head, MixtureHead):
            return self.head.mixture(network, condition)
        return Step(*gaussian_of(self.head, network, self.chain, x, step, condition, eta))

    def mean_log_prob(self, x: Tensor, step: Step, last: Tensor) -> Tensor:
        """[B] log-density per element of the executed part, each element's (in a mixture each mode's) clamped.

        Args:
            x: after the step [B, T', A'].
            step: what it was drawn from.
            last: rows whose step is the last of the chain, where the noise may be correlated [B] bool.
        """
        if step.log_weights is None:
            return self._density(x, step.mean, step.std, last)
        modes = step.log_weights.shape[1]
        each = self._density(x.repeat_interleave(modes, 0), *step.flat(), last.repeat_interleave(modes))
        return step.mixed(each, x[self.part][0].numel())

    def _density(self, x: Tensor, mean: Tensor, std: Tensor, last: Tensor) -> Tensor:
        away = (x - mean)[self.part]
        if self.mixing is None:
            return log_prob(away, torch.zeros_like(away), std).clamp(*LOG_PROB_BOUNDS).mean((1, 2))
        mixing = self.mixing.to(away)
        shape = away.shape
        white = torch.linalg.solve_triangular(mixing, away.transpose(0, 1).flatten(1), upper=False)
        white = white.view(shape[1], shape[0], shape[2]).transpose(0, 1)
        rows = last.to(away.device)[:, None, None]
        density = log_prob(torch.where(rows, white, away), torch.zeros_like(away), std)
        density = density - rows * mixing.diagonal().log().mean()
        return density.clamp(*LOG_PROB_BOUNDS).mean((1, 2))

    def evaluate(self, x: Tensor, after: Tensor, step: Tensor, condition: TensorDict) -> tuple[Tensor, Step]:
        """Log-probability [B] of ``after`` given ``x`` [B, T', A'] under the trained network, and its distribution.

        Args:
            x: chain before the step.
            after: chain after it.
            step: index [B] among all K steps.
            condition: of each row.
        """
        now = self.step_at(self.learned, x, step, condition, self.eta).at_least(self.min_std)
        return self.mean_log_prob(after, now, step == self.chain.steps - 1), now

    def from_base(self, now: Step, x: Tensor, step: Tensor, condition: TensorDict) -> Tensor:
        """Divergence of ``now`` from what the frozen base would have drawn from, per element of the executed part.

        Of mixtures it is that of mode and chunk together, which is never below the chunk's own.

        Args:
            now: from ``evaluate``.
            x: chain before the step.
            step: index [B] among all K steps.
            condition: of each row.
        """
        with torch.no_grad():
            base = self.step_at(self.head.network, x, step, condition, self.eta).at_least(self.min_std)
        if not isinstance(self.head, MixtureHead):  # both have the step's deviation
            return (((now.mean - base.mean) / base.std).square() / 2)[self.part].mean()
        away = ((now.mean - base.mean).square() + now.std.square()) / base.std.square()
        each = ((away - 1) / 2 + (base.std / now.std).log())[..., self.part[1], self.part[2]]
        if now.log_weights is None or base.log_weights is None:
            return each.mean()
        weights = now.log_weights.exp()
        moved = (weights * (now.log_weights - base.log_weights)).sum(1) / each[0, 0].numel()
        return ((weights * each.mean((2, 3))).sum(1) + moved).mean()

    def _noise(self, shape: Any, generator: torch.Generator | None) -> Tensor:
        device = next(self.head.network.parameters()).device
        return torch.randn(shape, generator=generator).to(device)


def _mixing(steps: int, correlation: float) -> Tensor:
    """[H, H] lower triangular: times white noise [H] it is noise of variance 1, any two of its steps so correlated."""
    return torch.linalg.cholesky(torch.eye(steps) * (1 - correlation) + correlation)
