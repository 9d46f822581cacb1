"""One DPPO update written straight from the published equations, in the order in which the authors' program does the work.

The other side of ``vla-rl bench dppo_reference``, and the oracle of ``tests/bench/test_dppo_reference.py``: nothing of
``vla_rl.algorithms.dppo`` is used. Where the work could be arranged better it is left as the authors arrange it: the
frozen network is asked at every pair and overwritten, the old policy's log-probabilities are computed again after the
roll-out and kept elementwise, the critic is asked once per pair, the denoising discount is a list.

Source: arXiv 2409.00588, eqs. 4-6 and appendix; structure of irom-princeton/dppo at its 2025 state.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from vla_rl.policies.heads import Head


@dataclass
class Knobs:
    """The update's hyper-parameters, named as in the equations."""

    steps: int
    min_std: float
    gamma_denoising: float
    clip: float
    clip_base: float
    clip_rate: float
    executed: int
    action_dim: int
    actor_lr: float
    critic_lr: float


class Reference:
    """The authors' update on a diffusion head whose last ``steps`` (here: all) DDIM steps are trained, eta = 1.

    Args:
        knobs: hyper-parameters.
        head: the frozen base's; its noise network is asked at every pair.
        network: the trained copy; copied again here.
        critic: features [B, F] -> [B, 1]; copied.
    """

    def __init__(self, knobs: Knobs, head: Head, network: nn.Module, critic: nn.Module) -> None:
        self.knobs, self.head = knobs, head
        self.network, self.critic = copy.deepcopy(network), copy.deepcopy(critic)
        trained = [p for p in self.network.parameters() if p.requires_grad]
        self.actor_optimizer = torch.optim.AdamW(trained, lr=knobs.actor_lr, weight_decay=0.0)
        self.critic_optimizer = torch.optim.AdamW(
            self.critic.parameters(), lr=knobs.critic_lr, weight_decay=0.0
        )
        scheduler: Any = head.model.objective.noise_scheduler  # type: ignore[attr-defined]
        scheduler.set_timesteps(knobs.steps)
        self.times = scheduler.timesteps.long()
        stride = scheduler.config.num_train_timesteps // knobs.steps
        products = scheduler.alphas_cumprod
        self.level = products[self.times]
        earlier = self.times - stride
        self.cleaner = torch.where(
            earlier >= 0, products[earlier.clamp(min=0)], scheduler.final_alpha_cumprod
        )
        self.limit = float(scheduler.config.clip_sample_range) if scheduler.config.clip_sample else None

    def log_probs(self, before: Tensor, after: Tensor, index: Tensor, condition: TensorDict) -> Tensor:
        """Elementwise [B, T', A'] of the DDIM step ``index`` [B] from ``before`` to ``after``."""
        time = self.times[index]
        with torch.no_grad():
            noise = self.head.predict(self.head.network, before, time, condition)
        ours = torch.where(index >= 0)[0]  # the trained ones: here all, and still both networks are asked
        noise = noise.index_copy(
            0, ours, self.head.predict(self.network, before[ours], time[ours], condition[ours])
        )
        level, cleaner = self.level[index].view(-1, 1, 1), self.cleaner[index].view(-1, 1, 1)
        data = (before - (1 - level).sqrt() * noise) / level.sqrt()
        if self.limit is not None:
            data = data.clamp(-self.limit, self.limit)
        sigma = ((1 - cleaner) / (1 - level) * (1 - level / cleaner)).clamp(min=0).sqrt()
        mean = cleaner.sqrt() * data + (1 - cleaner - sigma**2).clamp(min=0).sqrt() * noise
        std = sigma.clamp(min=self.knobs.min_std).expand_as(mean)
        return torch.distributions.Normal(mean, std).log_prob(after)

    def recompute(self, chains: Tensor, condition: TensorDict) -> Tensor:
        """[N, K', T', A'] of all pairs, after the roll-out."""
        count, steps = chains.shape[0], self.knobs.steps
        index = torch.arange(steps).repeat(count)
        each = torch.arange(count).repeat_interleave(steps)
        with torch.no_grad():
            flat = self.log_probs(
                chains[:, :-1].flatten(0, 1), chains[:, 1:].flatten(0, 1), index, condition[each]
            )
        return flat.view(count, steps, *chains.shape[2:])

    def losses(self, rows: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Policy and value loss of a minibatch of pairs.

        Args:
            rows: ``before``, ``after`` [B, T', A'], ``index`` [B], ``condition``, ``old`` [B, T', A'] elementwise,
                ``advantage``, ``return`` [B], ``features`` [B, F].
        """
        knobs, index = self.knobs, rows["index"]
        part = (
            slice(None),
            slice(self.head.first, self.head.first + knobs.executed),
            slice(knobs.action_dim),
        )
        new = self.log_probs(rows["before"], rows["after"], index, rows["condition"])
        new = new.clamp(-5, 2)[part].mean((-1, -2))
        old = rows["old"].clamp(-5, 2)[part].mean((-1, -2))
        advantage = rows["advantage"]
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        discount = torch.tensor([knobs.gamma_denoising ** (knobs.steps - int(i) - 1) for i in index])
        advantage = advantage * discount
        ratio = (new - old).exp()
        t = index.float() / (knobs.steps - 1)
        clip = knobs.clip_base + (knobs.clip - knobs.clip_base) * (torch.exp(knobs.clip_rate * t) - 1) / (
            math.exp(knobs.clip_rate) - 1
        )
        policy = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)).mean()
        value = self.critic(rows["features"]).view(-1)
        return policy, (value - rows["return"]).square().mean()

    def update(self, rows: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """One optimiser step of both networks on one summed loss; returns both losses."""
        policy, value = self.losses(rows)
        loss = policy + value
        self.actor_optimizer.zero_grad()
        self.critic_optimizer.zero_grad()
        loss.backward()
        self.actor_optimizer.step()
        self.critic_optimizer.step()
        return policy.detach(), value.detach()
