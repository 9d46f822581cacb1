"""The authors' own DPPO program as the other side of ``vla-rl bench dppo_reference reference=FOLDER``.

Their model, network and critic are imported from a checkout of irom-princeton/dppo and called as their agent calls them;
nothing of it is kept here. Their network becomes a ``Head``, so that our learner trains a copy of the same one.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from vla_rl.algorithms.dppo import DPPO
from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.keys import STATE
from vla_rl.policies.base import PolicySpec
from vla_rl.policies.denoising import Chain
from vla_rl.policies.gaussian_head import trainable_copy
from vla_rl.policies.open_loop import OpenLoop

LOG_PROB_BATCH = 10_000
"""Decisions per pass when they compute the old probabilities again (``logprob_batch_size``)."""


class AuthorsHead:
    """``vla_rl.policies.heads.Head`` over their denoiser: DDPM's levels, data clipped, noise derived again."""

    first = 0
    from_noise = True

    def __init__(self, model: Any) -> None:
        self.model, self.network = model, model.actor
        self.shape = (model.horizon_steps, model.action_dim)

    def chain(self, steps: int | None = None) -> Chain:
        """All their steps, whatever is asked for."""
        products = self.model.alphas_cumprod.flip(0).double()
        levels = torch.cat([products, torch.ones(1)])
        times = torch.arange(self.model.denoising_steps).flip(0)
        sigma = (1 - levels).clamp(min=0).sqrt().float()
        return Chain(times, levels.sqrt().float(), sigma, "epsilon", self.model.denoised_clip_value, True)

    def encode(self, batch: dict[str, Any]) -> TensorDict:
        """Their condition."""
        return TensorDict({"state": batch[STATE][:, None]}, batch_size=[len(batch[STATE])])

    def predict(self, network: nn.Module, x: Tensor, time: Tensor, condition: TensorDict) -> Tensor:
        """See ``Head``."""
        return network(x, time, cond={"state": condition["state"]})

    def copy(self) -> nn.Module:
        """See ``Head``."""
        return trainable_copy(self.network)


class AuthorsPolicy:
    """A policy with the ``Denoising`` capability over it."""

    def __init__(self, model: Any) -> None:
        self.head = AuthorsHead(model)
        self.spec = PolicySpec(model.action_dim, model.horizon_steps, state_keys=(STATE,))

    def initial_state(self, batch_size: int) -> TensorDict:
        """Nothing."""
        return TensorDict({}, batch_size=[batch_size])

    def needs_images(self, state: TensorDict) -> Tensor:
        """Never."""
        return torch.zeros(state.batch_size[0], dtype=torch.bool)

    def encode(self, observation: Any, state: TensorDict) -> tuple[TensorDict, TensorDict]:
        """See ``Denoising``."""
        return self.head.encode(observation), state

    def act(
        self, observation: Any, state: TensorDict, *, deterministic: bool = False
    ) -> tuple[TensorDict, TensorDict]:
        """``action`` [B, T, A] by their own sampler."""
        condition = {"state": observation[STATE][:, None]}
        chunk = self.head.model(condition, deterministic=deterministic, return_chain=False).trajectories
        return TensorDict({"action": chunk}, batch_size=[len(chunk)]), state

    def actions_of(self, x: Tensor) -> Tensor:
        """Already in the environment's units."""
        return x


def load(folder: Path, config: Any) -> Any:
    """Their ``PPODiffusion`` with the robomimic state network, at random.

    Raises:
        UserError: no such checkout, or one of its requirements is missing.
    """
    if not (folder / "model" / "diffusion" / "diffusion_ppo.py").is_file():
        raise UserError(
            f"reference={folder}: no checkout of irom-princeton/dppo is there (model/diffusion/...)"
        )
    sys.path.insert(0, str(folder))
    try:
        from model.common.critic import CriticObs  # pyright: ignore[reportMissingImports]
        from model.diffusion.diffusion_ppo import PPODiffusion  # pyright: ignore[reportMissingImports]
        from model.diffusion.mlp_diffusion import DiffusionMLP  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"reference={folder}: {error} (pip install what its model/ needs)") from error
    finally:
        sys.path.remove(str(folder))
    actor = DiffusionMLP(
        action_dim=config.actions,
        horizon_steps=config.chunk,
        cond_dim=config.state,
        time_dim=16,
        mlp_dims=list(config.hidden),
        residual_style=True,
    )
    critic = CriticObs(cond_dim=config.state, mlp_dims=[256] * 3, residual_style=True)
    return PPODiffusion(
        gamma_denoising=0.99,
        clip_ploss_coef=0.01,
        clip_ploss_coef_base=1e-3,
        clip_ploss_coef_rate=3,
        randn_clip_value=3,
        min_sampling_denoising_std=0.1,
        min_logprob_denoising_std=0.1,
        actor=actor,
        critic=critic,
        ft_denoising_steps=config.trained,
        horizon_steps=config.chunk,
        obs_dim=config.state,
        action_dim=config.actions,
        denoising_steps=config.steps,
        device="cpu",
    )


class Authors:
    """Their update on one batch, and our learner on copies of its networks and the same batch.

    Args:
        folder: a checkout of irom-princeton/dppo.
        config: ``authors`` of ``configs/bench_dppo_reference.yaml``.
    """

    def __init__(self, folder: Path, config: Any) -> None:
        self.config, self.model = config, load(folder, config)
        count = int(config.decisions)
        self.seen = torch.rand(count, config.state) * 2 - 1
        condition = {"state": self.seen[:, None]}
        with torch.no_grad():
            self.chains = self.model(condition, deterministic=False).chains
        self.returns, self.advantages = torch.randn(count), torch.randn(count)
        self.values = torch.zeros(count)
        self.old = torch.from_numpy(self.recompute()).float()
        self.ours = self._ours()
        self.actor_optimizer = torch.optim.AdamW(
            self.model.actor_ft.parameters(), self.ours.config.actor_lr, weight_decay=0.0
        )
        self.critic_optimizer = torch.optim.AdamW(
            self.model.critic.parameters(), self.ours.config.critic_lr, weight_decay=0.0
        )

    def _ours(self) -> DPPO:
        from vla_rl.algorithms.factory import dppo

        config, count = self.config, len(self.seen)
        box = (-1.0,) * config.actions, (1.0,) * config.actions
        spec = EnvSpec("bench", config.state, 0, *box, {}, ("do the task",), 100, 10.0)
        ours = dppo(
            OpenLoop(AuthorsPolicy(self.model), config.chunk),
            spec,
            1,
            trained_steps=config.trained,
            decisions=count,
            epochs=config.epochs,
            batch_size=config.batch_size,
            critic_warmup=0,
            target_kl=1e9,
            compile=bool(config.get("compile", False)),
            observation_keys=[STATE],
        )
        ours.encoder.normalizer.freeze()  # they standardise beforehand
        ours.critic = copy.deepcopy(self.model.critic)
        ours.critic_optimizer = torch.optim.AdamW(
            ours.critic.parameters(), ours.config.critic_lr, weight_decay=0.0
        )
        with (
            torch.no_grad()
        ):  # some way off the policy that drew the chunks, as in the middle of an iteration
            for weight in ours.actor.network.parameters():
                weight.add_(2e-3 * torch.randn_like(weight))
        self.model.actor_ft.load_state_dict(ours.actor.network.state_dict())
        parts = {
            "observation": TensorDict({STATE: self.seen}, batch_size=[count]),
            "chain": self.chains,
            "log_prob": self.old.clamp(-5, 2).mean((-1, -2)),
            "condition": ours.actor.head.encode({STATE: self.seen}),
            "advantage": self.advantages,
            "return": self.returns,
            "value": self.values,
            "own": torch.ones(count, dtype=torch.bool),
        }
        ours.batch = TensorDict(parts, batch_size=[count])
        return ours

    def recompute(self) -> np.ndarray:
        """Old log-probabilities [N, K', T, A] after the roll-out, gathered in numpy as theirs are."""
        found = np.empty((0, self.config.trained, self.config.chunk, self.config.actions))
        for seen, chains in zip(
            self.seen.split(LOG_PROB_BATCH), self.chains.split(LOG_PROB_BATCH), strict=True
        ):
            with torch.no_grad():
                part = self.model.get_logprobs({"state": seen[:, None]}, chains).cpu().numpy()
            found = np.vstack((found, part.reshape(-1, *found.shape[1:])))
        return found

    def losses(self, which: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Policy and value loss of the pairs ``which``, ``step`` [B] by their own function."""
        found = self.model.loss(
            {"state": self.seen[which][:, None]},
            self.chains[which, step],
            self.chains[which, step + 1],
            step,
            self.returns[which],
            self.values[which],
            self.advantages[which],
            self.old[which, step],
            reward_horizon=self.config.chunk,
        )
        return found[0], found[2]

    def compare(self) -> dict[str, float]:
        """How far both losses are apart on one minibatch; their value loss has a half in it."""
        which, step = self._pairs()[0]
        policy, value = self.losses(which, step)
        return {
            "policy_loss": float((policy - self.ours.actor_loss_of(which, step)[0]).abs().detach()),
            "value_loss": float((2 * value - self.ours.critic_loss_of(which)).abs().detach()),
        }

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        shape = len(self.seen), int(self.config.trained)
        parts = torch.randperm(math.prod(shape)).split(int(self.config.batch_size))
        return [torch.unravel_index(part, shape) for part in parts]  # type: ignore[misc]

    def time_iteration(self) -> float:
        """Seconds of what follows their roll-out: old probabilities, then all epochs."""
        began = time.perf_counter()
        self.old = torch.tensor(self.recompute()).float()
        for _ in range(int(self.config.epochs)):
            for which, step in self._pairs():
                policy, value = self.losses(which, step)
                self.actor_optimizer.zero_grad()
                self.critic_optimizer.zero_grad()
                (policy + 0.5 * value).backward()
                self.actor_optimizer.step()
                self.critic_optimizer.step()
        return time.perf_counter() - began
