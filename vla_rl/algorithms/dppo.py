"""DPPO: PPO over the denoising steps of a diffusion or flow policy (arXiv 2409.00588; for flows arXiv 2510.25889).

Two decision processes, one inside the other: the environment is acted on in chunks, and each chunk is the end of K
denoising steps, of which the last K' are a trained copy's. Reward and critic belong to the outer one; each inner step
is a Gaussian, whose log-probability PPO works on, with the outer advantage discounted towards noisier steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from vla_rl.algorithms.checkpoint import load_learner, save_learner
from vla_rl.algorithms.decisions import Decisions
from vla_rl.algorithms.experience import Encoder
from vla_rl.algorithms.ppo import RewardScale, clip_schedule, clipped_loss, denoising_discount
from vla_rl.algorithms.replayed_value import ReplayedValue
from vla_rl.environment import EnvSpec
from vla_rl.errors import NonFiniteError, UserError
from vla_rl.nn.ensemble import mlp
from vla_rl.policies.base import Policy
from vla_rl.policies.denoised import Denoised
from vla_rl.policies.open_loop import OpenLoop

CRITIC_BATCH = 256
"""Decisions per temporal-difference update."""


@dataclass
class DPPOConfig:
    """Settings; names as in the paper's code where it has them.

    Attributes:
        denoising_steps: K; None = as the policy was saved.
        trained_steps: K', the last of them, which learn; None = all.
        eta: 0 (deterministic sampler) to 1 (ancestral; for a flow the SDE of the same marginals) while collecting.
        min_std: least standard deviation of a trained step, in normalised actions: the exploration.
        max_noise: draws of the standard normal are clamped to this.
        noise_correlation: between any two steps of a chunk, of the last denoising step's noise: 0 (white, the paper's)
            explores by jitter, near 1 by moving the whole chunk aside, which one success says more about.
        decisions: chunks decided per iteration, all environments together.
        epochs: passes over an iteration's data.
        batch_size: (decision, denoising step) pairs per update, nearly.
        gamma: discount per decision.
        gae_lambda: of generalised advantage estimation.
        denoising_gamma: discount per denoising step.
        clip: half-width of the trust region at the last denoising step.
        clip_first: at the noisiest trained step.
        clip_rate: how late it grows from the one to the other (exponentially).
        target_kl: an iteration's updates end when the policy has moved this far.
        critic_warmup: iterations that train the critic alone.
        critic_updates: 0 = the critic is fitted on each iteration's returns (PPO); otherwise temporal-difference updates per
            iteration on the newest ``critic_memory`` decisions, which a few hundred decisions per iteration need.
        critic_memory: decisions kept for that.
        base_kl: weight of the divergence from the frozen base, step by step (0 = none).
        scale_rewards: divide rewards by the running deviation of their discounted sum.
        actor_lr: AdamW step size of the denoiser.
        critic_lr: of the critic.
        grad_clip: maximal gradient norm; 0 = none.
        compile: torch.compile for the denoiser's updates: a third faster on a small transformer, after a minute or two.
        observation_keys: what the critic sees; () = proprioception, the instruction and, in simulation, privileged state.
        image_features: width of the image vector per camera, when a camera is named above.
        encoder: ``vit`` or ``conv``.
        image_shift: pixels of random shift in the critic's updates.
        hidden: hidden widths of the critic.
    """

    denoising_steps: int | None = None
    trained_steps: int | None = None
    eta: float = 1.0
    min_std: float = 0.1
    max_noise: float = 3.0
    noise_correlation: float = 0.0
    decisions: int = 2000
    epochs: int = 10
    batch_size: int = 2000
    gamma: float = 0.999
    gae_lambda: float = 0.95
    denoising_gamma: float = 0.99
    clip: float = 0.01
    clip_first: float = 0.001
    clip_rate: float = 3.0
    target_kl: float = 1.0
    critic_warmup: int = 2
    critic_updates: int = 0
    critic_memory: int = 10_000
    base_kl: float = 0.0
    scale_rewards: bool = True
    actor_lr: float = 1e-4
    critic_lr: float = 1e-3
    grad_clip: float = 0.0
    compile: bool = False
    observation_keys: list[str] = field(default_factory=list)
    image_features: int = 64
    encoder: str = "vit"
    image_shift: int = 4
    hidden: list[int] = field(default_factory=lambda: [256, 256, 256])


def _check(config: DPPOConfig) -> None:
    for name in ("decisions", "epochs", "batch_size", "critic_memory"):
        if getattr(config, name) < 1:
            raise UserError(f"algorithm.{name}={getattr(config, name)} must be at least 1")
    for name in ("gamma", "gae_lambda", "denoising_gamma", "eta"):
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"algorithm.{name}={getattr(config, name)} is outside 0..1")
    if config.min_std <= 0:
        raise UserError(f"algorithm.min_std={config.min_std} must be above 0: it is the exploration")
    if config.trained_steps is not None and config.trained_steps < 1:
        raise UserError(f"algorithm.trained_steps={config.trained_steps}: nothing would learn; at least 1")


class DPPO:
    """See the module's docstring.

    The chunks under way while an iteration's updates are done belong to the next one, with the probabilities they were
    drawn with.

    Args:
        config: settings.
        base: ``OpenLoop`` over a policy with denoising steps, frozen.
        env_spec: the environment's dimensions.
        num_envs: environment rows whose frames will come.
        device: of the critic; the policy is where it was loaded.

    Raises:
        UserError: a base without denoising steps, or a setting that does not fit.
    """

    takes_demonstrations = False
    on_policy = True

    def __init__(
        self, config: DPPOConfig, base: Policy, env_spec: EnvSpec, num_envs: int, device: str = "cpu"
    ) -> None:
        _check(config)
        if not isinstance(base, OpenLoop):
            raise UserError(
                f"{type(base).__name__} gives no action chunks: DPPO needs a diffusion or flow policy"
            )
        self.config, self.base = config, base
        seed = torch.initial_seed() % 2**31
        self.generator = torch.Generator().manual_seed(seed)
        self.acting_generator = torch.Generator().manual_seed(seed + 1)
        self.actor = Denoised(
            base.base,
            steps=config.denoising_steps,
            trained=config.trained_steps,
            eta=config.eta,
            min_std=config.min_std,
            max_noise=config.max_noise,
            correlation=config.noise_correlation,
            executed=base.horizon,
            generator=self.acting_generator,
        )
        if config.compile:
            self.actor.compile()
        self.encoder = Encoder(
            env_spec, config.observation_keys, config.image_features, config.encoder, config.image_shift
        ).to(device)
        self.critic = mlp(self.encoder.features, config.hidden, 1, layer_norm=True).to(device)
        weights = [p for p in self.actor.network.parameters() if p.requires_grad]
        seen = [p for p in self.encoder.parameters() if p.requires_grad]
        self.actor_optimizer = torch.optim.AdamW(weights, lr=config.actor_lr, weight_decay=0.0)
        self.critic_optimizer = torch.optim.AdamW(
            [*self.critic.parameters(), *seen], lr=config.critic_lr, weight_decay=0.0
        )
        self.replayed = ReplayedValue(
            self.critic,
            lambda seen, learning: self.encoder(seen, learning, self.generator),
            lambda loss: self._step(loss, self.critic_optimizer, "critic"),
            capacity=config.critic_memory,
            gamma=config.gamma,
        )
        self.critic_loss = torch.zeros(())
        self.decisions = Decisions(num_envs, self.encoder.keys)
        self.policy = OpenLoop(self.actor, base.horizon, on_decision=self.decisions.decided)
        self.eval_policy = OpenLoop(self.actor, base.horizon)
        self.clips = clip_schedule(self.actor.trained, config.clip_first, config.clip, config.clip_rate)
        self.weights = denoising_discount(self.actor.trained, config.denoising_gamma)
        self.rewards = RewardScale(num_envs)
        self.steps = self.updates = self.iteration = self.left = 0
        self.batch: TensorDict | None = None
        self.order: list[Tensor] = []

    # ---- data -------------------------------------------------------------------------------------------

    def observe(self, frames: TensorDict, rows: Tensor) -> None:
        """Take frames of the decisions that ``policy`` made."""
        self.decisions.observe(frames, rows)
        self.steps += int((~frames["final"]).sum())

    def add_demonstrations(self, frames: TensorDict, rows: Tensor | None = None) -> None:
        """Refused: on-policy learning has no use for them.

        Raises:
            UserError: always.
        """
        raise UserError(
            "DPPO learns from its own decisions alone: set demonstrations=none, or pretrain on them"
        )

    def _prepare(self) -> None:
        config = self.config
        scale = 1.0
        if config.scale_rewards:
            self.rewards.update(self.decisions.rewards())
            scale = self.rewards.scale
        fresh = self.decisions.over()
        assert fresh is not None
        if not self.iteration and self.encoder.vector_keys:
            self.encoder.normalizer.update(self.encoder.vectors(fresh["observation"]))
            self.encoder.normalizer.freeze()
        if config.critic_updates:
            self.replayed.add(fresh)
            self.critic_loss = self.replayed.fit(config.critic_updates, CRITIC_BATCH, scale, self.generator)
        batch = self.decisions.take(self._values, config.gamma, config.gae_lambda, scale)
        self.batch, self.left = batch, self._updates_for(len(batch))
        self.order = []

    def _updates_for(self, decisions: int) -> int:
        return self.config.epochs * self._batches(decisions)

    def _batches(self, decisions: int) -> int:
        """Minibatches of one epoch, all of nearly the same size: a last one of a single pair has no deviation."""
        return max(1, round(decisions * self.actor.trained / self.config.batch_size))

    def _values(self, observation: TensorDict) -> Tensor:
        with torch.no_grad():
            parts = [self.critic(self.encoder(part)) for part in observation.split(4096)]
        return torch.cat(parts).squeeze(-1).cpu()

    # ---- learning ---------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether an iteration's decisions are over."""
        return self.left > 0 or len(self.decisions) >= self.config.decisions

    def updates_due(self, env_steps: int | None = None) -> int:
        """What is left of the present iteration's updates."""
        if self.left or not self.ready:
            return self.left
        return self._updates_for(len(self.decisions))

    def update(self) -> dict[str, Tensor]:
        """One minibatch of (decision, denoising step) pairs: the critic, and after its warm-up the denoiser.

        Raises:
            NonFiniteError: a loss is NaN or infinite.
        """
        if self.batch is None:
            self._prepare()
        assert self.batch is not None
        config, trained = self.config, self.actor.trained
        if not self.order:
            pairs = torch.randperm(len(self.batch) * trained, generator=self.generator)
            self.order = list(pairs.tensor_split(self._batches(len(self.batch))))
        picked = self.order.pop(0)
        which, step = picked // trained, picked % trained
        if config.critic_updates:  # done, in _prepare
            metrics = {"critic_loss": self.critic_loss}
        else:
            loss = self.critic_loss_of(which)
            self._step(loss, self.critic_optimizer, "critic")
            metrics = {"critic_loss": loss.detach().cpu()}
        stop = False
        if self.iteration >= config.critic_warmup:
            loss, actor = self.actor_loss_of(which, step)
            self._step(loss, self.actor_optimizer, "actor")
            stop = bool(actor["approx_kl"] > config.target_kl)
            metrics |= {"actor_loss": loss.detach().cpu()} | {k: v.cpu() for k, v in actor.items()}
        returns: Any = self.batch["return"][which]
        values = self.batch["value"][which]
        metrics["explained"] = 1 - (returns - values).var() / returns.var().clamp(min=1e-8)
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

    def actor_loss_of(self, which: Tensor, step: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """PPO's loss on the pairs of decisions ``which`` [B] and ``step`` [B] among the K' trained ones, and its metrics."""
        config, batch = self.config, self.batch
        assert batch is not None
        device = next(self.actor.network.parameters()).device
        x, after = batch["chain"][which, step].to(device), batch["chain"][which, step + 1].to(device)
        condition = batch["condition"][which].to(device)
        absolute = (step + self.actor.frozen).to(device)
        new, now = self.actor.evaluate(x, after, absolute, condition)
        advantage = batch["advantage"][which]
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        # What a person did instead says nothing of this chunk.
        advantage = advantage * self.weights[step] * batch["own"][which]
        loss, metrics = clipped_loss(
            new, batch["log_prob"][which, step].to(device), advantage.to(device), self.clips[step].to(device)
        )
        if config.base_kl:
            divergence = self.actor.from_base(now, x, absolute, condition)
            loss = loss + config.base_kl * divergence
            metrics["base_kl"] = divergence.detach()
        return loss, metrics

    def _step(self, loss: Tensor, optimizer: torch.optim.Optimizer, name: str) -> None:
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the {name} loss is {loss.item()} at update {self.updates}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.grad_clip:
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(weights, self.config.grad_clip)
        optimizer.step()

    # ---- checkpoints ------------------------------------------------------------------------------------

    def _modules(self) -> Mapping[str, nn.Module]:
        trained = nn.ParameterDict(
            {k.replace(".", "/"): p for k, p in self.actor.network.named_parameters() if p.requires_grad}
        )
        target = {"target": self.replayed.target} if self.config.critic_updates else {}
        return {"encoder": self.encoder, "critic": self.critic, "denoiser": trained} | target

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
            self.decisions.load(folder / "decisions")
            self.replayed.load(folder)
