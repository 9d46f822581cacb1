"""Residual off-policy RL: ResFiT (arXiv 2509.19301) with what makes it start without a dip.

TD3 on a bounded per-step correction of a frozen, chunked base policy. From RLPD: half of each batch is
demonstrations. From REDQ: many critics, minimum of a random few. From DAWN (arXiv 2602.10539): the base's own
warm-up transitions stay in replay as the critic's anchor, and critics are normalised. From EXPO
(arXiv 2507.07986): N base candidates, the critic chooses, in acting and in the target. The unedited base always
competes (``gate``), so an untrained residual cannot drag a working base away.

One ``update`` is: y = r + gamma^m max_choices min_{random 2} Q'(s', choice); critics to y; every
``actor_every``-th time the actor up the mean critic; targets follow.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from vla_rl.algorithms.checkpoint import load_learner, save_learner
from vla_rl.algorithms.descent import descend
from vla_rl.algorithms.experience import Encoder, Experience
from vla_rl.algorithms.products import check_precision, compiled, products
from vla_rl.environment import EnvSpec
from vla_rl.errors import NonFiniteError, UserError
from vla_rl.nn.correction import Actor, critic_values
from vla_rl.nn.ensemble import EnsembleMLP, polyak
from vla_rl.policies.base import Observation, Policy
from vla_rl.policies.residual import ActionBox, Residual, action_scale


@dataclass
class ResidualTD3Config:
    """Settings; lengths in environment steps unless said otherwise.

    Attributes:
        scale: bound of the correction as a fraction of half the action range; one number or one per dimension
            (0 = leave that dimension to the base).
        gripper_scale: the same for dimensions named ``gripper``, when ``scale`` is one number; None = ``scale``.
        candidates: base candidates per decision (1 = residual RL, n = EXPO).
        gate: the unedited base competes with the edits wherever the critic chooses.
        gate_margin: standard deviations of the critics' disagreement taken off an edit's advantage.
        observation_keys: what actor and critic see; () = proprioception, the instruction and, in simulation,
            privileged state.
        image_features: width of the image vector per camera, when a camera is named above.
        encoder: ``vit``, ``conv`` or ``keypoints``.
        image_shift: pixels of random shift.
        warmup_steps: base only, with uniform noise ``warmup_noise``, before any update.
        critic_updates: critic-only updates right after the warm-up.
        ramp_steps: steps over which the residual's probability rises from 0 to 1.
        utd: updates per environment step.
        actor_every: critic updates per actor update.
        actor_critics: critics, drawn anew at each update, whose mean the actor climbs; None = all of them (REDQ), 1 = as
            TD3 does.
        n_step: length of the return.
        gamma: discount per step.
        batch_size: transitions per update.
        demonstration_share: share of each batch from demonstrations (when there are any).
        anchor_share: least share of the rest from the base's warm-up (never evicted).
        critics: members of the ensemble.
        subset: members of the random subset whose minimum is the target.
        hidden: hidden widths of actor and critics.
        layer_norm: False only for ablations.
        actor_lr: Adam step size of the actor.
        critic_lr: Adam step size of the critics (and of the image encoder).
        tau: rate at which targets follow.
        target_every: critic updates per step of the targets; TD3's own is ``actor_every``.
        exploration: std of the exploration noise, fraction of half the range.
        exploration_correlation: of the noise, the warm-up's too, with that of the step before, in [0, 1): white noise (0)
            hardly moves an arm whose actions are small displacements.
        target_noise: std of target smoothing noise on the correction, fraction of ``scale``.
        warmup_noise: half-width of the warm-up's uniform noise, fraction of half the range.
        action_penalty: weight of the squared correction in the actor's loss (cloning of the base).
        clip_target: keep targets in the range of returns (``EnvSpec.returns``), of a sparse success [0, 1].
        capacity: frames of online replay.
        demonstration_capacity: frames of demonstrations.
        replay_path: folder for the frames of all of them, mapped into memory; None = in memory. For pictures by the ten
            thousand: checkpoints copy none of it, and memory is given back when it is short.
        grad_clip: maximal gradient norm; 0 = none.
        compile: torch.compile of the loss functions.
        precision: of the matrix products of an update: ``float32``, or ``bfloat16`` (weights and optimisers stay
            float32), which pays where a processor has it.
    """

    scale: Any = 0.3
    gripper_scale: float | None = None
    candidates: int = 1
    gate: bool = True
    gate_margin: float = 0.0
    observation_keys: list[str] = field(default_factory=list)
    image_features: int = 64
    encoder: str = "vit"
    image_shift: int = 4
    warmup_steps: int = 3000
    critic_updates: int = 1500
    ramp_steps: int = 0
    utd: float = 1.0
    actor_every: int = 2
    actor_critics: int | None = None
    n_step: int = 5
    gamma: float = 0.97
    batch_size: int = 256
    demonstration_share: float = 0.5
    anchor_share: float = 0.0
    critics: int = 5
    subset: int = 2
    hidden: list[int] = field(default_factory=lambda: [128, 128])
    layer_norm: bool = True
    actor_lr: float = 3e-4
    critic_lr: float = 5e-4
    tau: float = 0.01
    target_every: int = 1
    exploration: float = 0.05
    exploration_correlation: float = 0.0
    target_noise: float = 0.05
    warmup_noise: float = 0.2
    action_penalty: float = 0.0
    clip_target: bool = True
    capacity: int = 200_000
    demonstration_capacity: int = 50_000
    replay_path: str | None = None
    grad_clip: float = 10.0
    compile: bool = False
    precision: str = "float32"

    def check(self) -> None:
        """Refuse settings that cannot work, before anything slow starts.

        Raises:
            UserError: naming the setting and what it must be.
        """
        positive = ("candidates", "actor_every", "target_every", "n_step", "batch_size", "critics", "subset")
        for name in positive:
            if getattr(self, name) < 1:
                raise UserError(f"algorithm.{name}={getattr(self, name)} must be at least 1")
        if self.subset > self.critics:
            raise UserError(f"algorithm.subset={self.subset} exceeds algorithm.critics={self.critics}")
        if self.actor_critics is not None and not 1 <= self.actor_critics <= self.critics:
            raise UserError(
                f"algorithm.actor_critics={self.actor_critics}: 1 to algorithm.critics={self.critics}, or null for all"
            )
        check_precision(self.precision)
        for name in ("gamma", "tau", "demonstration_share", "anchor_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"algorithm.{name}={getattr(self, name)} must lie in [0, 1]")
        if not 0 <= self.exploration_correlation < 1:
            raise UserError(
                f"algorithm.exploration_correlation={self.exploration_correlation} must lie in [0, 1)"
            )
        if self.utd < 0 or self.warmup_steps < 0:
            raise UserError("algorithm.utd and algorithm.warmup_steps must not be negative")


class ResidualTD3:
    """See the module's docstring.

    Args:
        config: settings.
        base: one action per step, frozen (``OpenLoop`` of a chunked policy).
        env_spec: the environment's dimensions and action box.
        num_envs: environment rows whose frames will come.
        device: where networks and replay live; acting takes and gives CPU tensors.

    Raises:
        UserError: a setting that does not fit the environment.
    """

    on_policy = False

    def __init__(
        self,
        config: ResidualTD3Config,
        base: Policy,
        env_spec: EnvSpec,
        num_envs: int,
        device: str | torch.device = "cpu",
    ) -> None:
        config.check()
        self.config, self.device = config, torch.device(device)
        self.box, self.returns = ActionBox(env_spec, device), env_spec.returns
        self.scale = action_scale(config.scale, env_spec, config.gripper_scale).to(device)
        self.encoder = Encoder(
            env_spec, config.observation_keys, config.image_features, config.encoder, config.image_shift
        ).to(device)
        inputs, hidden, norm = self.encoder.features, config.hidden, config.layer_norm
        self.actor = Actor(inputs, env_spec.action_dim, hidden, norm).to(device)
        self.critic = EnsembleMLP(config.critics, inputs + env_spec.action_dim, hidden, layer_norm=norm).to(
            device
        )
        self.target_critic = EnsembleMLP(
            config.critics, inputs + env_spec.action_dim, hidden, layer_norm=norm
        )
        self.target_critic.to(device).load_state_dict(self.critic.state_dict())
        self.target_critic.requires_grad_(False)
        seen = [p for p in self.encoder.parameters() if p.requires_grad]
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=config.actor_lr, fused=True)
        self.critic_optimizer = torch.optim.Adam(
            [*self.critic.parameters(), *seen], lr=config.critic_lr, fused=True
        )
        self.experience = Experience(
            config.capacity,
            config.warmup_steps,
            config.demonstration_capacity,
            num_envs,
            self.encoder.keys,
            device,
            Path(config.replay_path).expanduser() if config.replay_path else None,
        )
        seed = torch.initial_seed() % 2**31
        self.generator = torch.Generator(self.device).manual_seed(seed)  # learning
        self.acting_generator = torch.Generator().manual_seed(seed + 1)
        self.base = base
        self.steps = 0
        self.updates = 0
        self.offline = 0
        """Those of ``updates`` that were on demonstrations alone."""
        self.policy, self.eval_policy = (
            Residual(
                base,
                self.box,
                self.features,
                self.actor,
                self.scale,
                value=self.value,
                gate=config.gate,
                margin=config.gate_margin,
                observation_keys=self.encoder.keys,
                generator=self.acting_generator,
            )
            for _ in range(2)
        )
        self._critic_loss_fn, self._actor_loss_fn = compiled(
            config.compile, self._critic_loss, self._actor_loss
        )
        self._set_phase()

    # ---- acting -----------------------------------------------------------------------------------------

    def features(self, observation: Observation) -> Tensor:
        """[B, F]: what actor and critic see of an observation."""
        return self.encoder(observation)

    def value(self, features: Tensor, actions: Tensor) -> Tensor:
        """[E, B, M]: all critics on normalised ``actions`` [B, M, A]."""
        return critic_values(self.critic, features, actions)

    def _set_phase(self) -> None:
        """Base alone while warming up; then the residual joins, with a probability that ramps up."""
        config, policy = self.config, self.policy
        warming = self.steps < config.warmup_steps
        policy.enabled = not warming
        policy.uniform_noise = config.warmup_noise if warming else 0.0
        policy.noise = 0.0 if warming else config.exploration
        policy.correlation = config.exploration_correlation
        past = self.steps - config.warmup_steps
        policy.probability = min(1.0, past / config.ramp_steps) if config.ramp_steps else 1.0

    # ---- data -------------------------------------------------------------------------------------------

    def observe(self, frames: TensorDict, rows: Tensor) -> None:
        """Store frames; counts environment steps (closing frames are none)."""
        warming = self.steps < self.config.warmup_steps
        self.experience.append(frames, rows, warming)
        self.count(frames)
        if warming and self.steps >= self.config.warmup_steps:
            self.experience.end_warmup()

    def count(self, frames: TensorDict) -> None:
        """Advance steps and phase without storing: for the actor's side of a learner in another process."""
        self.steps += int((~frames["final"]).sum())
        self._set_phase()

    def reached(self) -> dict[str, int]:
        """What ``reach`` of an acting half has to know."""
        return {"steps": self.steps}

    def reach(self, steps: int) -> None:
        """Be in the phase of environment step ``steps``, or of a later one: others collect too."""
        self.be_at(max(steps, self.steps))

    def be_at(self, steps: int) -> None:
        """Be at environment step ``steps`` of all who collect, of whose frames this learner may have a part."""
        over = self.steps < self.config.warmup_steps <= steps
        self.steps = steps
        if over:
            self.experience.end_warmup()
        self._set_phase()

    def reseed(self, seed: int) -> None:
        """Draw other batches and noise than a learner of the same seed beside this one."""
        self.generator.manual_seed(seed)

    @property
    def discount(self) -> tuple[float, int]:
        """Of values: gamma, and the control steps that it is of."""
        return self.config.gamma, 1

    @property
    def can_update(self) -> bool:
        """Whether there is anything to draw a batch from."""
        return self.experience.can_sample

    def interrupt(self, rows: Tensor | None = None) -> None:
        """Close the episodes in flight (of ``rows`` [k]; None: of all) as truncated: whoever played them is gone."""
        for buffer in (self.experience.warmup, self.experience.online):
            buffer.close_rows(torch.arange(buffer.rows) if rows is None else rows)

    def add_demonstrations(self, frames: TensorDict, rows: Tensor | None = None) -> None:
        """Store whole demonstration episodes, apart from online data."""
        self.experience.add_demonstrations(frames, rows)

    def _fit_normalizer(self) -> None:
        """Standardise from what the base and the demonstrators have seen; frozen from then on."""
        for observation in self.experience.observations():
            if self.encoder.vector_keys:
                self.encoder.normalizer.update(self.encoder.vectors(observation))
        self.encoder.normalizer.freeze()

    # ---- learning ---------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the warm-up is over."""
        return self.steps > 0 and self.steps >= self.config.warmup_steps

    def updates_due(self, env_steps: int | None = None) -> int:
        """``utd`` per step after the warm-up; the critic-only ones at its end."""
        steps = self.steps if env_steps is None else env_steps
        if not self.ready or steps < self.config.warmup_steps:
            return 0
        earned = self.config.critic_updates + int((steps - self.config.warmup_steps) * self.config.utd)
        return max(0, earned + self.offline - self.updates)

    def update(self) -> dict[str, Tensor]:
        """One critic update and, when its turn has come, one actor update."""
        config = self.config
        if not self.updates:
            self._fit_normalizer()
        batch = self.experience.batch(
            config.batch_size,
            config.demonstration_share,
            config.anchor_share,
            config.n_step,
            config.gamma,
            self.generator,
        )
        metrics, features = self._update_critic(batch)
        # actor up the mean critic
        past = self.updates - self.offline
        if past > config.critic_updates and past % config.actor_every == 0:
            metrics |= self._update_actor(features.detach(), batch["base_action"])
        return metrics

    def update_offline(self) -> dict[str, Tensor]:
        """One critic update on demonstrations alone; those that the steps earn come on top.

        The actor stays as it is: successful demonstrations alone contradict no overestimate that it could climb to.

        Raises:
            UserError: there are no demonstrations.
        """
        config = self.config
        if not self.updates:
            self._fit_normalizer()
        demonstrations = self.experience.demonstrations
        batch = demonstrations.sample(config.batch_size, config.n_step, config.gamma, self.generator)
        self.offline += 1
        return self._update_critic(batch)[0]

    def _update_critic(self, batch: TensorDict) -> tuple[dict[str, Tensor], Tensor]:
        """Critics to y = r + gamma^m Q'(s', a'), targets after them; metrics and the features of ``observation``."""
        config = self.config
        with torch.no_grad():
            following = self.encoder(batch["next_observation"], True, self.generator)
        noise = self._normal(batch["next_base_action"].shape).clamp_(-2, 2) * config.target_noise
        members = self._some_critics(config.subset)
        features = self.encoder(batch["observation"], True, self.generator)
        with products(self.device, config.precision):
            # Tensors and no TensorDict, whose every key a compiled function would look at first.
            transition = [batch[key] for key in ("action", "reward", "discount", "next_base_action")]
            loss, mean_value, mean_target = self._critic_loss_fn(
                features, *transition, following, noise, members
            )
        descend(self.critic_optimizer, loss, config.grad_clip)
        metrics = {"critic_loss": loss.detach() / config.critics, "q": mean_value, "target": mean_target}
        self.updates += 1
        if self.updates % config.target_every == 0:
            polyak(self.target_critic, self.critic, config.tau)
        # A look at the loss makes a GPU wait, so there it is taken now and then.
        if (self.device.type == "cpu" or self.updates % 50 == 0) and not torch.isfinite(loss):
            raise NonFiniteError(f"critic loss is {loss.item()} at update {self.updates}")
        return metrics, features

    def _target(
        self, features: Tensor, base: Tensor, reward: Tensor, discount: Tensor, noise: Tensor, members: Tensor
    ) -> Tensor:
        """Y [B] for the acting rule at the bootstrap state: edit every candidate, let the critic choose."""
        correction = (self.actor(features, self.box.normalize(base)) + noise).clamp(-1, 1)
        edited = self.box.clip(base + self.box.half * self.scale * correction)
        options = torch.cat([self.box.clip(base), edited], dim=1) if self.config.gate else edited
        values = critic_values(self.target_critic, features, self.box.normalize(options), members)
        y = reward + discount * values.float().amin(0).amax(1)
        return y.clamp(*self.returns) if self.config.clip_target else y

    def _critic_loss(
        self,
        features: Tensor,
        action: Tensor,
        reward: Tensor,
        discount: Tensor,
        next_base: Tensor,
        following: Tensor,
        noise: Tensor,
        members: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of the critics against y on the executed action; means of values and y."""
        with torch.no_grad():
            target = self._target(following, next_base, reward, discount, noise, members)
        actions = self.box.normalize(action)
        values = self.critic(torch.cat([features, actions], dim=-1)).squeeze(-1).float()  # [E, B]
        return (values - target).square().mean(1).sum(), values.detach().mean(), target.mean()

    def _update_actor(self, features: Tensor, base: Tensor) -> dict[str, Tensor]:
        if base.shape[1] > 1:  # any candidate may be edited: one at random for each state
            pick = torch.randint(base.shape[1], (len(base),), generator=self.generator, device=self.device)
            base = base[torch.arange(len(base), device=self.device), pick][:, None]
        wanted = self.config.actor_critics
        members = None if wanted is None else self._some_critics(wanted)
        self.critic.requires_grad_(False)
        with products(self.device, self.config.precision):
            loss, size = self._actor_loss_fn(features, base, members)
        descend(self.actor_optimizer, loss, self.config.grad_clip)
        self.critic.requires_grad_(True)
        return {"actor_loss": loss.detach(), "residual": size}

    def _actor_loss(
        self, features: Tensor, base: Tensor, members: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """-mean Q(s, clip(base + correction)) of ``members`` (None: all), the gradient passing through the clip.

        A base at the box's edge would otherwise pin a correction that once pointed outward for ever.
        """
        normal = self.box.normalize(base)
        correction = self.actor(features, normal)
        edited = normal + self.scale * correction
        clipped = edited + (edited.clamp(-1, 1) - edited).detach()
        loss = -critic_values(self.critic, features, clipped, members).float().mean()
        if self.config.action_penalty:
            loss = loss + self.config.action_penalty * correction.square().mean()
        return loss, correction.detach().abs().mean()

    def _some_critics(self, count: int) -> Tensor:
        """[count] members of the ensemble, drawn anew."""
        order = torch.randperm(self.config.critics, generator=self.generator, device=self.device)
        return order[:count]

    def _normal(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    # ---- checkpoints ------------------------------------------------------------------------------------

    def acting_modules(self) -> dict[str, nn.Module]:
        """The networks that acting needs."""
        return {"encoder": self.encoder, "actor": self.actor, "critic": self.critic}

    def _modules(self) -> dict[str, nn.Module]:
        return self.acting_modules() | {"target_critic": self.target_critic}

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"actor": self.actor_optimizer, "critic": self.critic_optimizer}

    def _generators(self) -> dict[str, torch.Generator]:
        return {"learning": self.generator, "acting": self.acting_generator}

    def save(self, folder: Path, *, replay: bool = True) -> None:
        """Networks, optimisers, generators, counters and (``replay``) all buffers; safetensors + JSON only.

        Raises:
            NonFiniteError: a weight is not finite; nothing is written.
            UserError: no space left.
        """
        counters = {"steps": self.steps, "updates": self.updates, "offline": self.offline}
        counters |= {"config": asdict(self.config)}
        save_learner(folder, self._modules(), self._optimizers(), self._generators(), counters)
        if replay:
            self.experience.save(folder / "replay")

    def load(self, folder: Path, *, replay: bool = True) -> None:
        """Read what ``save`` wrote.

        Raises:
            UserError: missing or truncated files, or shapes that differ from this configuration's.
        """
        counters = load_learner(folder, self._modules(), self._optimizers(), self._generators())
        self.steps, self.updates = counters["steps"], counters["updates"]
        self.offline = counters.get("offline", 0)
        if replay:
            self.experience.load(folder / "replay")
        self._set_phase()
