"""PPO over action words of an autoregressive VLA (VLA-RL, arXiv 2505.18719; clip-higher of SimpleVLA-RL, arXiv 2509.09674)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vla_rl.algorithms.chunk_ppo import ChunkPPO, ChunkPPOConfig, base_of, check_settings
from vla_rl.algorithms.ppo import clipped_loss
from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.policies.base import Policy
from vla_rl.policies.capabilities import Tokens
from vla_rl.policies.spoken import Spoken

RATIOS = ("token", "action", "chunk")


@dataclass
class TokenPPOConfig(ChunkPPOConfig):
    """Settings, with those of ``ChunkPPOConfig``. A decision is one unit: all words of the chunk.

    Attributes:
        temperature: that words are drawn and scored at.
        drawn_steps: time steps of a chunk whose words are drawn and learned from; those of later steps are the likeliest to
            follow. A chunk that goes on as it began explores as far with a few words as with all of them, and what came of it
            says more of each. 0 = all.
        ratio: what the trust region is of: each ``token``, each ``action`` (the words of one time step together), or the
            ``chunk``.
        clip: how far the ratio may fall below 1.
        clip_high: how far it may rise above.
        entropy: weight of the words' entropy.
    """

    decisions: int = 600
    epochs: int = 4
    batch_size: int = 128
    gamma: float = 0.95
    critic_updates: int = 200
    critic_lr: float = 3e-4
    grad_clip: float = 1.0
    actor_lr: float = 3e-5
    target_kl: float = 0.2
    temperature: float = 1.0
    drawn_steps: int = 0
    ratio: str = "action"
    clip: float = 0.2
    clip_high: float = 0.28
    entropy: float = 0.0


class TokenPPO(ChunkPPO):
    """See the module's docstring.

    Args:
        config: settings.
        base: ``OpenLoop`` over a policy with action tokens, frozen.
        env_spec: the environment's dimensions.
        num_envs: environment rows whose frames will come.
        device: of the critic; the policy is where it was loaded.

    Raises:
        UserError: a base without action tokens, or a setting that does not fit.
    """

    needs = "token PPO needs a token policy"

    def __init__(
        self, config: TokenPPOConfig, base: Policy, env_spec: EnvSpec, num_envs: int, device: str = "cpu"
    ) -> None:
        check_settings(config)
        if config.ratio not in RATIOS:
            raise UserError(f"algorithm.ratio={config.ratio}: choose from {', '.join(RATIOS)}")
        if not 0 < config.clip < 1 or config.clip_high <= 0:
            raise UserError(
                f"algorithm.clip={config.clip} clip_high={config.clip_high}: 0 < clip < 1, 0 < clip_high"
            )
        chunks = base_of(base, self.needs)
        says = chunks.base
        if config.ratio == "action" and isinstance(says, Tokens) and says.token_head.words.end is not None:
            raise UserError(
                "algorithm.ratio=action: FAST words are of the whole chunk, not of one time step; set algorithm.ratio=chunk or token"
            )
        super().__init__(
            config,
            lambda generator: Spoken(
                chunks.base,
                temperature=config.temperature,
                executed=chunks.horizon,
                drawn_steps=config.drawn_steps,
                generator=generator,
            ),
            chunks,
            env_spec,
            num_envs,
            device,
        )

    def said(self, which: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Of the decisions ``which`` [B]: tokens [B, N], their log-probability when drawn and now, entropy, logits now."""
        assert self.batch is not None
        device = next(self.actor.network.parameters()).device
        tokens = self.batch["tokens"][which].to(device)
        new, entropy, logits = self.actor.evaluate(self.batch["condition"][which].to(device), tokens)
        return tokens, self.batch["log_prob"][which].to(device), new, entropy, logits

    def rewarded_loss(self, which: Tensor, old: Tensor, new: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The clipped objective of the decisions ``which`` [B], for words ``old`` and ``new`` [B, N] likely."""
        config = self.config
        parts = {"token": new.shape[1], "action": new.shape[1] // self.actor.dims, "chunk": 1}[config.ratio]
        old, new = (each.view(len(new), parts, -1).sum(2) for each in (old, new))
        advantage = self.advantage_of(which).to(new.device)[:, None].expand_as(new)
        low, high = (torch.full_like(new, value) for value in (config.clip, config.clip_high))
        return clipped_loss(new, old, advantage, low, high)

    def actor_loss_of(self, which: Tensor, unit: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """PPO's loss on the decisions ``which`` [B]; ``unit`` is 0 for all."""
        config = self.config
        tokens, old, new, entropy, logits = self.said(which)
        loss, metrics = self.rewarded_loss(which, old, new)
        metrics["entropy"] = entropy.detach().mean()
        if config.entropy:
            loss = loss - config.entropy * entropy.mean()
        if config.base_kl:
            assert self.batch is not None
            condition = self.batch["condition"][which].to(tokens.device)
            divergence = self.actor.from_base(logits, condition, tokens).mean()
            loss = loss + config.base_kl * divergence
            metrics["base_kl"] = divergence.detach()
        return loss, metrics
