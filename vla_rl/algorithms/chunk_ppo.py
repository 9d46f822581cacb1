"""PPO over decisions: what learners of action chunks by policy gradient have in common.

An iteration collects ``decisions`` chunks, then makes ``epochs`` passes over (decision, unit) pairs, where a unit is what
the policy of that learner draws one after the other within a decision: denoising steps, or the chunk as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from vla_rl.algorithms.checkpoint import load_learner, save_learner
from vla_rl.algorithms.decisions import Decisions
from vla_rl.algorithms.descent import averaged, descend, from_first, summed
from vla_rl.algorithms.elsewhere import FromDecisions
from vla_rl.algorithms.experience import Encoder
from vla_rl.algorithms.groups import Groups
from vla_rl.algorithms.ppo import RewardScale
from vla_rl.algorithms.replayed_value import ReplayedValue
from vla_rl.algorithms.sharding import shard
from vla_rl.environment import EnvSpec
from vla_rl.errors import NonFiniteError, UserError
from vla_rl.nn.ensemble import mlp
from vla_rl.policies.base import Policy
from vla_rl.policies.open_loop import OpenLoop

CRITIC_BATCH = 256
"""Decisions per temporal-difference update."""


@dataclass
class ChunkPPOConfig:
    """Settings that all of them have.

    Attributes:
        decisions: chunks decided per iteration, all environments together.
        epochs: passes over an iteration's data.
        batch_size: (decision, unit) pairs per update, nearly.
        gamma: discount per decision.
        gae_lambda: of generalised advantage estimation.
        time_limit: ``bootstrap``: at a time limit the critic says what would have followed, as is right for a policy that would go on;
            ``end``: nothing follows, and the critic sees how many steps have gone (arXiv 1712.00378). Success within the limit
            is then what is learned, which short episodes of which many are cut need: no decision is ever made in the states
            they are cut in, and what a critic says there is made up.
        target_kl: an iteration's updates end when the policy has moved this far.
        critic_warmup: iterations that train the critic alone.
        critic_updates: 0 = the critic is fitted on each iteration's returns (PPO); otherwise temporal-difference updates per
            iteration on the newest ``critic_memory`` decisions, which a few hundred decisions per iteration need.
        critic_memory: decisions kept for that.
        group: 0 = advantages of a critic (GAE); G = of G episodes from the same scene, compared with one another, without a
            critic (GRPO). Groups that end alike teach nothing and are left out; ``decisions`` are those that are left.
        base_kl: weight of the divergence from the frozen base (0 = none).
        scale_rewards: divide rewards by the running deviation of their discounted sum.
        actor_lr: AdamW step size of the policy.
        actor_lr_steps: environment steps over which it falls in a line to a tenth; None = it stays.
        critic_lr: of the critic.
        grad_clip: maximal gradient norm; 0 = none.
        observation_keys: what the critic sees; () = proprioception, the instruction and, in simulation, privileged state.
        image_features: width of the image vector per camera, when a camera is named above.
        encoder: ``vit``, ``conv`` or ``keypoints``.
        image_shift: pixels of random shift in the critic's updates.
        hidden: hidden widths of the critic.
    """

    decisions: int = 2000
    epochs: int = 10
    batch_size: int = 2000
    gamma: float = 0.999
    gae_lambda: float = 0.95
    time_limit: str = "bootstrap"
    target_kl: float = 1.0
    critic_warmup: int = 2
    critic_updates: int = 0
    critic_memory: int = 10_000
    group: int = 0
    base_kl: float = 0.0
    scale_rewards: bool = True
    actor_lr: float = 1e-4
    actor_lr_steps: int | None = None
    critic_lr: float = 1e-3
    grad_clip: float = 0.0
    observation_keys: list[str] = field(default_factory=list)
    image_features: int = 64
    encoder: str = "vit"
    image_shift: int = 4
    hidden: list[int] = field(default_factory=lambda: [256, 256, 256])


def check_settings(config: ChunkPPOConfig) -> None:
    """Refuse what cannot be.

    Raises:
        UserError: naming the setting.
    """
    for name in ("decisions", "epochs", "batch_size", "critic_memory"):
        if getattr(config, name) < 1:
            raise UserError(f"algorithm.{name}={getattr(config, name)} must be at least 1")
    if config.actor_lr_steps is not None and config.actor_lr_steps < 1:
        raise UserError(
            f"algorithm.actor_lr_steps={config.actor_lr_steps} must be at least 1; null = no decay"
        )
    if config.time_limit not in ("bootstrap", "end"):
        raise UserError(f"algorithm.time_limit={config.time_limit}: choose bootstrap or end")
    for name in ("gamma", "gae_lambda"):
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"algorithm.{name}={getattr(config, name)} is outside 0..1")


def base_of(base: Policy, needs: str) -> OpenLoop:
    """``base``, which must give chunks.

    Args:
        base: of the learner.
        needs: what it needs, for the message.

    Raises:
        UserError: it gives single actions.
    """
    if not isinstance(base, OpenLoop):
        raise UserError(f"{type(base).__name__} gives no action chunks: {needs}")
    return base


class ChunkPPO(FromDecisions):
    """The iteration: decisions, advantages, critic, minibatches; a subclass has the policy's loss.

    The chunks under way while an iteration's updates are done belong to the next one, with the probabilities they were
    drawn with.

    Args:
        config: settings.
        make_actor: from the generator of its exploration, the policy over chunks whose ``network`` is trained.
        base: the frozen policy that it came from, with its horizon.
        env_spec: the environment's dimensions.
        num_envs: environment rows whose frames will come.
        device: of the critic; the policy is where it was loaded.
    """

    takes_demonstrations = False
    on_policy = True
    units = 1
    """Units of a decision."""
    learns_value = True
    """Whether there is a critic to train: not where nothing is made of rewards."""
    trained_name = "policy"
    """Of the policy's weights in checkpoints."""

    def __init__(
        self,
        config: ChunkPPOConfig,
        make_actor: Callable[[torch.Generator], Any],
        base: OpenLoop,
        env_spec: EnvSpec,
        num_envs: int,
        device: str,
    ) -> None:
        self.config: Any = config
        self.base: Policy = base
        seed = torch.initial_seed() % 2**31
        self.generator = torch.Generator().manual_seed(seed)
        self.acting_generator = torch.Generator().manual_seed(seed + 1)
        self.actor = actor = make_actor(self.acting_generator)
        ends = config.time_limit == "end"
        self.encoder = Encoder(
            env_spec,
            config.observation_keys,
            config.image_features,
            config.encoder,
            config.image_shift,
            clock=ends,
        ).to(device)
        self.critic = mlp(self.encoder.features, config.hidden, 1, layer_norm=True).to(device)
        seen = [p for p in self.encoder.parameters() if p.requires_grad]
        self.actor_optimizer = self._policy_optimizer()
        self.critic_optimizer = torch.optim.AdamW(
            [*self.critic.parameters(), *seen], lr=config.critic_lr, weight_decay=0.0, fused=True
        )
        self.replayed = ReplayedValue(
            self.critic,
            lambda seen, learning: self.encoder(seen, learning, self.generator),
            lambda loss: self._step(loss, self.critic_optimizer, "critic"),
            capacity=config.critic_memory,
            gamma=config.gamma,
        )
        self.critic_loss = torch.zeros(())
        self.groups = Groups(num_envs, config.group) if config.group else None
        number = (lambda row: self.groups.begun[row]) if self.groups else None
        self.decisions = Decisions(num_envs, self.encoder.keys, number=number, limit_ends=ends)
        self.learns_value = self.groups is None
        self.explore(actor)
        self.eval_policy = OpenLoop(actor, base.horizon)
        self.rewards = RewardScale(num_envs)
        self.steps = self.updates = self.iteration = self.left = 0
        self.batch: TensorDict | None = None
        self.order: list[Tensor] = []

    def _policy_optimizer(self) -> torch.optim.Optimizer:
        weights = [p for p in self.actor.network.parameters() if p.requires_grad]
        return torch.optim.AdamW(weights, lr=self.config.actor_lr, weight_decay=0.0, fused=True)

    def shard(self) -> None:
        """Keep only this rank's part of the policy, of its gradients and of its optimiser's state (``sharding``).

        Raises:
            UserError: a compiled policy.
        """
        if getattr(self.config, "compile", False):
            raise UserError("algorithm.compile=true: not of a policy in parts (launcher.shard=true)")
        from_first(self.acting_modules().values())
        shard(self.actor.network)
        self.actor_optimizer = self._policy_optimizer()

    def explore(self, policy: Policy) -> None:
        """Collect with ``policy``: the actor, perhaps with a teacher beside it."""
        assert isinstance(self.base, OpenLoop)
        self.policy = OpenLoop(policy, self.base.horizon, on_decision=self.decisions.decided)

    # ---- data -------------------------------------------------------------------------------------------

    def observe(self, frames: TensorDict, rows: Tensor) -> None:
        """Take frames of the decisions that ``policy`` made."""
        super().observe(frames, rows)
        if self.groups is not None:
            for row, number, advantage in self.groups.observe(frames, rows):
                self.decisions.settle(row, number, advantage)

    def add_demonstrations(self, frames: TensorDict, rows: Tensor | None = None) -> None:
        """Refused: on-policy learning has no use for them.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{type(self).__name__} learns from its own decisions alone: set demonstrations=none, or pretrain on them"
        )

    def _prepare(self) -> None:
        self.batch = self._valued() if self.groups is None else self.decisions.take_settled()
        # Of several learners all make as many, whatever part of the decisions is theirs.
        self.left = self._updates_for(round(averaged(len(self.batch))))
        self.order = []
        if self.config.actor_lr_steps is not None:
            gone = min(1.0, self.steps / self.config.actor_lr_steps)
            for group in self.actor_optimizer.param_groups:
                group["lr"] = self.config.actor_lr * (1 - 0.9 * gone)

    def _valued(self) -> TensorDict:
        """All decisions that are over, with the critic's advantages."""
        config = self.config
        scale = 1.0
        if config.scale_rewards:
            self.rewards.update(self.decisions.rewards())
            scale = self.rewards.scale_of(*summed(*self.rewards.moments()))
        fresh = self.decisions.over()
        assert fresh is not None
        if not self.iteration and self.encoder.vector_keys:
            self.encoder.normalizer.update(self.encoder.vectors(fresh["observation"]))
            self.encoder.normalizer.freeze()
            from_first([self.encoder])
        if config.critic_updates and self.learns_value:
            self.replayed.add(fresh)
            self.critic_loss = self.replayed.fit(config.critic_updates, CRITIC_BATCH, scale, self.generator)
        return self.decisions.take(self._values, config.gamma, config.gae_lambda, scale)

    def _updates_for(self, decisions: int) -> int:
        return self.config.epochs * self._batches(decisions)

    def _batches(self, decisions: int) -> int:
        """Minibatches of one epoch, all of nearly the same size: a last one of a single pair has no deviation."""
        return max(1, round(decisions * self.units / self.config.batch_size))

    def _values(self, observation: TensorDict) -> Tensor:
        with torch.no_grad():
            parts = [self.critic(self.encoder(part)) for part in observation.split(4096)]
        return torch.cat(parts).squeeze(-1).cpu()

    # ---- learning ---------------------------------------------------------------------------------------

    @property
    def can_update(self) -> bool:
        """Whether an iteration's updates may begin, or go on."""
        return self.ready

    @property
    def _collected(self) -> int:
        return len(self.decisions) if self.groups is None else self.decisions.settled

    @property
    def ready(self) -> bool:
        """Whether an iteration's decisions are over."""
        return self.left > 0 or self._collected >= self.config.decisions

    def updates_due(self, env_steps: int | None = None) -> int:
        """What is left of the present iteration's updates."""
        if self.left or not self.ready:
            return self.left
        return self._updates_for(self._collected)

    def update(self) -> dict[str, Tensor]:
        """One minibatch of (decision, unit) pairs: the critic, and after its warm-up the policy.

        Raises:
            NonFiniteError: a loss is NaN or infinite.
        """
        if self.batch is None:
            self._prepare()
        assert self.batch is not None
        config, units = self.config, self.units
        if not self.order:
            pairs = torch.randperm(len(self.batch) * units, generator=self.generator)
            self.order = list(pairs.tensor_split(self._batches(len(self.batch))))
        picked = self.order.pop(0)
        which, unit = picked // units, picked % units
        if config.critic_updates or not self.learns_value:  # done, in _prepare
            metrics = {"critic_loss": self.critic_loss}
        else:
            loss = self.critic_loss_of(which)
            self._step(loss, self.critic_optimizer, "critic")
            metrics = {"critic_loss": loss.detach().cpu()}
        stop = False
        if self.iteration >= config.critic_warmup or not self.learns_value:
            loss, actor = self.actor_loss_of(which, unit)
            self._step(loss, self.actor_optimizer, "actor")
            stop = "approx_kl" in actor and averaged(float(actor["approx_kl"])) > config.target_kl
            metrics |= {"actor_loss": loss.detach().cpu()} | {k: v.cpu() for k, v in actor.items()}
        if self.groups is None:
            returns: Any = self.batch["return"][which]
            values = self.batch["value"][which]
            metrics["explained"] = 1 - (returns - values).var() / returns.var().clamp(min=1e-8)
        else:
            metrics["mixed_groups"] = torch.tensor(self.groups.mixed / max(1, self.groups.seen))
        self.updates += 1
        self.left = 0 if stop else self.left - 1
        if not self.left:
            self.batch = None
            self.iteration += 1
        return metrics

    def critic_loss_of(self, which: Tensor) -> Tensor:
        """The value's loss on the decisions ``which`` [B] of this iteration; one that stands there several times is seen once."""
        assert self.batch is not None
        each, count = which.unique(return_counts=True)
        value = self.critic(self.encoder(self.batch["observation"][each], True, self.generator)).squeeze(-1)
        away = (value - self.batch["return"][each].to(value.device)).square()
        return (away * count.to(value.device)).sum() / len(which)

    def actor_loss_of(self, which: Tensor, unit: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The policy's loss on the pairs of decisions ``which`` [B] and ``unit`` [B], and its metrics (``approx_kl`` where it is known)."""
        raise NotImplementedError

    def advantage_of(self, which: Tensor) -> Tensor:
        """[B] standardised over the minibatch; 0 where a person did something else, which says nothing of this chunk."""
        assert self.batch is not None
        advantage = self.batch["advantage"][which]
        if self.groups is None:  # those of groups are standardised already
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        return advantage * self.batch["own"][which]

    def _step(self, loss: Tensor, optimizer: torch.optim.Optimizer, name: str) -> None:
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the {name} loss is {loss.item()} at update {self.updates}")
        descend(optimizer, loss, self.config.grad_clip)

    # ---- checkpoints ------------------------------------------------------------------------------------

    def acting_modules(self) -> dict[str, nn.Module]:
        """What acting needs of the networks: the policy's trained weights."""
        trained = {
            k.replace(".", "/"): p for k, p in self.actor.network.named_parameters() if p.requires_grad
        }
        return {self.trained_name: nn.ParameterDict(trained)}

    def _modules(self) -> Mapping[str, nn.Module]:
        target = {"target": self.replayed.target} if self.config.critic_updates else {}
        return {"encoder": self.encoder, "critic": self.critic} | self.acting_modules() | target

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"actor": self.actor_optimizer, "critic": self.critic_optimizer}

    def _generators(self) -> dict[str, torch.Generator]:
        return {"learning": self.generator, "acting": self.acting_generator}

    def save(self, folder: Path, *, replay: bool = True) -> None:
        """Networks, optimisers, generators, counters and (``replay``) the decisions of the iteration under way.

        An iteration's updates are done in one go, so none is ever half done here.

        Raises:
            NonFiniteError: a weight is not finite; nothing is written.
            UserError: no space left.
        """
        counters = {
            "steps": self.steps,
            "updates": self.updates,
            "iteration": self.iteration,
            "rewards": self.rewards.state(),
            "groups": self.groups.state() if self.groups else None,
            "config": asdict(self.config),
        }
        save_learner(folder, self._modules(), self._optimizers(), self._generators(), counters)
        if replay:
            self.decisions.save(folder / "decisions")
            self.replayed.save(folder)

    def load(self, folder: Path, *, replay: bool = True) -> None:
        """Read what ``save`` wrote.

        Raises:
            UserError: missing or truncated files, or shapes that differ from this configuration's.
        """
        counters = load_learner(folder, self._modules(), self._optimizers(), self._generators())
        self.steps, self.updates = counters["steps"], counters["updates"]
        self.iteration, self.left, self.batch = counters["iteration"], 0, None
        self.rewards.restore(counters["rewards"])
        if replay:
            if self.groups is not None:
                self.groups.restore(counters["groups"])
            self.decisions.load(folder / "decisions")
            self.replayed.load(folder)
