"""Residual off-policy RL: ResFiT (arXiv 2509.19301) with what makes it start without a dip.

TD3 on a bounded per-step correction of a frozen, chunked base policy. From RLPD: half of each batch is
demonstrations. From REDQ: many critics, minimum of a random few. From DAWN (arXiv 2602.10539): the base's own
warm-up transitions stay in replay as the critic's anchor, and critics are normalised. From EXPO
(arXiv 2507.07986): N base candidates, the critic chooses, in acting and in the target; the unedited base always
competes (``gate``), so an untrained residual cannot drag a working base away.

One ``update`` is: y = r + gamma^m min_{random 2} Q'(s', choice'(s')); critics to y; every ``actor_every``-th time
the actor up the mean critic; targets follow.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tensordict import TensorDict
from torch import Tensor, nn

from vla_rl.data.replay import ReplayBuffer
from vla_rl.environment import EnvSpec
from vla_rl.errors import NonFiniteError, UserError
from vla_rl.keys import ENV_STATE, STATE
from vla_rl.nn.ensemble import EnsembleMLP, mlp, polyak
from vla_rl.nn.normalize import Normalizer
from vla_rl.policies.base import Observation, Policy
from vla_rl.policies.residual import ActionBox, Residual, select


@dataclass
class ResidualTD3Config:
    """Settings; lengths in environment steps unless said otherwise.

    Attributes:
        scale: bound of the correction as a fraction of half the action range; one number or one per dimension.
        candidates: base candidates per decision (1 = residual RL, n = EXPO).
        gate: the unedited base competes with the edits wherever the critic chooses.
        observation_keys: what actor and critic see; () = proprioception and, in simulation, privileged state.
        warmup_steps: base only, with uniform noise ``warmup_noise``, before any update.
        critic_updates: critic-only updates right after the warm-up.
        ramp_steps: steps over which the residual's probability rises from 0 to 1.
        utd: updates per environment step.
        actor_every: critic updates per actor update.
        n_step: length of the return.
        gamma: discount per step.
        batch_size: transitions per update.
        demonstration_share: share of each batch from demonstrations (when there are any).
        critics: members of the ensemble.
        subset: members of the random subset whose minimum is the target.
        hidden: hidden widths of actor and critics.
        actor_lr: Adam step size of the actor.
        critic_lr: Adam step size of the critics.
        tau: rate at which targets follow.
        exploration: std of the exploration noise, fraction of half the range.
        target_noise: std of target smoothing noise on the correction, same unit.
        warmup_noise: half-width of the warm-up's uniform noise, same unit.
        action_penalty: weight of the squared correction in the actor's loss.
        clip_target: keep targets in the reward's range [0, 1].
        capacity: frames of online replay.
        demonstration_capacity: frames of demonstrations.
        grad_clip: maximal gradient norm.
    """

    scale: Any = 0.3
    candidates: int = 1
    gate: bool = True
    observation_keys: list[str] = field(default_factory=list)
    warmup_steps: int = 3000
    critic_updates: int = 1500
    ramp_steps: int = 0
    utd: float = 1.0
    actor_every: int = 2
    n_step: int = 5
    gamma: float = 0.97
    batch_size: int = 256
    demonstration_share: float = 0.5
    critics: int = 5
    subset: int = 2
    hidden: list[int] = field(default_factory=lambda: [128, 128])
    actor_lr: float = 3e-4
    critic_lr: float = 5e-4
    tau: float = 0.01
    exploration: float = 0.05
    target_noise: float = 0.05
    warmup_noise: float = 0.2
    action_penalty: float = 0.0
    clip_target: bool = True
    capacity: int = 200_000
    demonstration_capacity: int = 50_000
    grad_clip: float = 10.0


class Actor(nn.Module):
    """Correction in (-1, 1) for every candidate, from features and the candidate itself; zero at first."""

    def __init__(self, features: int, actions: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.net = mlp(features + actions, tuple(hidden), actions, zero_last=True)

    def forward(self, features: Tensor, base: Tensor) -> Tensor:
        """[B, F], [B, N, A] -> [B, N, A]."""
        count = base.shape[1]
        return torch.tanh(self.net(torch.cat([features[:, None].expand(-1, count, -1), base], dim=-1)))


class ResidualTD3:
    """See the module's docstring.

    Args:
        config: settings.
        base: one action per step, frozen (``OpenLoop`` of a chunked policy).
        env_spec: the environment's dimensions and action box.
        num_envs: environment rows whose frames will come.

    Raises:
        UserError: a setting that does not fit the environment.
    """

    def __init__(self, config: ResidualTD3Config, base: Policy, env_spec: EnvSpec, num_envs: int) -> None:
        self.config = config
        dims = {STATE: env_spec.state_dim, ENV_STATE: env_spec.env_state_dim}
        self.keys = list(config.observation_keys) or [k for k, d in dims.items() if d]
        for key in self.keys:
            if not dims.get(key):
                raise UserError(f"algorithm.observation_keys names {key}, which {env_spec.id} does not have")
        features = sum(dims[k] for k in self.keys)
        actions = env_spec.action_dim
        scale = torch.as_tensor(config.scale, dtype=torch.float32).expand(actions).clone()
        self.box = ActionBox(env_spec)
        self.normalizer = Normalizer(features)
        self.actor = Actor(features, actions, config.hidden)
        self.critic = EnsembleMLP(config.critics, features + actions, tuple(config.hidden))
        self.target_critic = EnsembleMLP(config.critics, features + actions, tuple(config.hidden))
        self.target_critic.load_state_dict(self.critic.state_dict())
        self.target_critic.requires_grad_(False)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=config.actor_lr, fused=True)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=config.critic_lr, fused=True)
        self.replay = ReplayBuffer(config.capacity, num_envs)
        self.demonstrations = ReplayBuffer(config.demonstration_capacity, 1)
        self.generator = torch.Generator().manual_seed(torch.initial_seed() % 2**31)
        self.steps = 0
        self.updates = 0
        self.policy = Residual(
            base,
            self.box,
            self.features,
            self.actor,
            scale,
            value=self.value,
            gate=config.gate,
            noise=config.exploration,
        )
        self._set_phase()

    # ---- acting -----------------------------------------------------------------------------------------

    def features(self, observation: Observation | TensorDict) -> Tensor:
        """[B, F]: the observation's vectors, standardised."""
        return self.normalizer(torch.cat([observation[key] for key in self.keys], dim=-1))

    def value(self, features: Tensor, actions: Tensor) -> Tensor:
        """Mean critic of normalised ``actions`` [B, N, A] -> [B, N]."""
        return self._ensemble(self.critic, features, actions).mean(0)

    def _ensemble(self, critic: EnsembleMLP, features: Tensor, actions: Tensor) -> Tensor:
        """[E, B, N] values of normalised ``actions`` [B, N, A]."""
        batch, count, _ = actions.shape
        x = torch.cat([features[:, None].expand(-1, count, -1), actions], dim=-1)
        return critic(x.reshape(batch * count, -1)).reshape(-1, batch, count)

    def _set_phase(self) -> None:
        """Base alone while warming up; then the residual joins, with a probability that ramps up."""
        config, policy = self.config, self.policy
        warming = self.steps < config.warmup_steps
        policy.enabled = not warming
        # A uniform on [-a, a] has standard deviation a / sqrt(3).
        policy.noise = config.warmup_noise / 3**0.5 if warming else config.exploration
        past = self.steps - config.warmup_steps
        policy.probability = min(1.0, past / config.ramp_steps) if config.ramp_steps else 1.0

    # ---- data -------------------------------------------------------------------------------------------

    def observe(self, frames: TensorDict, rows: Tensor) -> None:
        """Store frames; counts environment steps (closing frames are none)."""
        self.replay.append(frames, rows)
        before = self.steps
        self.steps += int((~frames["final"]).sum())
        if before < self.config.warmup_steps <= self.steps:
            self._fit_normalizer()
        self._set_phase()

    def add_demonstrations(self, frames: TensorDict) -> None:
        """Store whole demonstration episodes, apart from online data."""
        self.demonstrations.append(frames, torch.zeros(len(frames), dtype=torch.long))

    def _fit_normalizer(self) -> None:
        """Standardise from what the base and the demonstrators have seen; frozen from then on."""
        seen = self.replay.gather(self.replay.starts(), 1, 1.0)["observation"]
        parts = [torch.cat([seen[k] for k in self.keys], dim=-1)]
        if len(self.demonstrations):
            shown = self.demonstrations.gather(self.demonstrations.starts(), 1, 1.0)["observation"]
            parts.append(torch.cat([shown[k] for k in self.keys], dim=-1))
        self.normalizer.fit(torch.cat(parts))

    def _batch(self) -> TensorDict:
        config = self.config
        shown = int(config.batch_size * config.demonstration_share) if len(self.demonstrations) else 0
        online = self.replay.sample(config.batch_size - shown, config.n_step, config.gamma, self.generator)
        if not shown:
            return online
        demos = self.demonstrations.sample(shown, config.n_step, config.gamma, self.generator)
        return torch.cat([online, demos])  # type: ignore[return-value]

    # ---- learning ---------------------------------------------------------------------------------------

    def updates_due(self, env_steps: int) -> int:
        """``utd`` per step, rounded; none while warming up; the critic-only ones at its end."""
        config = self.config
        if self.steps < config.warmup_steps:
            return 0
        earned = config.critic_updates + int((self.steps - config.warmup_steps) * config.utd)
        return max(0, earned - self.updates)

    def update(self) -> dict[str, Tensor]:
        """One critic update and, when its turn has come, one actor update."""
        config = self.config
        batch = self._batch()
        features = self.features(batch["observation"])
        actions = self.box.normalize(batch["action"])
        with torch.no_grad():
            target = self._target(batch)
        values = self.critic(torch.cat([features, actions], dim=-1)).squeeze(-1)  # [E, B]
        critic_loss = (values - target).pow(2).mean(1).sum()
        self._step(self.critic_optimizer, self.critic, critic_loss)
        metrics = {"critic_loss": critic_loss.detach() / config.critics, "q": values.detach().mean()}
        self.updates += 1
        if self.updates > config.critic_updates and self.updates % config.actor_every == 0:
            metrics |= self._update_actor(features, batch["base_action"][:, :1])
        polyak(self.target_critic, self.critic, config.tau)
        if self.updates % 50 == 0 and not torch.isfinite(critic_loss):
            raise NonFiniteError(f"critic loss is {critic_loss.item()} at update {self.updates}")
        return metrics

    def _target(self, batch: TensorDict) -> Tensor:
        """y [B]: the acting rule (edit, then choose) at the bootstrap state, under target critics."""
        config = self.config
        features = self.features(batch["next_observation"])
        base = batch["next_base_action"]
        correction = self.actor(features, self.box.normalize(base))
        noise = torch.randn(correction.shape, generator=self.generator) * config.target_noise
        correction = (correction + noise.clamp(-2 * config.target_noise, 2 * config.target_noise)).clamp(-1, 1)
        edited = self.box.clip(base + self.box.half * self.policy.scale * correction)
        action = select(features, base, edited, self.box, self._target_value, config.gate)
        members = torch.randperm(config.critics, generator=self.generator)[: config.subset]
        values = self._ensemble(self.target_critic, features, self.box.normalize(action)[:, None])
        worst = values[members].amin(0).squeeze(-1)
        if config.clip_target:
            worst = worst.clamp(0.0, 1.0)
        return batch["reward"] + batch["discount"] * worst

    def _target_value(self, features: Tensor, actions: Tensor) -> Tensor:
        return self._ensemble(self.target_critic, features, actions).mean(0)

    def _update_actor(self, features: Tensor, base: Tensor) -> dict[str, Tensor]:
        """Up the mean critic of base + correction (no clip in the way of the gradient)."""
        normal = self.box.normalize(base)
        correction = self.actor(features, normal)
        edited = normal + self.policy.scale * correction
        self.critic.requires_grad_(False)
        value = self.value(features, edited.clamp(-1, 1) + (edited - edited.detach()) * 0)
        loss = -value.mean() + self.config.action_penalty * correction.pow(2).mean()
        self._step(self.actor_optimizer, self.actor, loss)
        self.critic.requires_grad_(True)
        return {"actor_loss": loss.detach(), "residual": correction.detach().abs().mean()}

    def _step(self, optimizer: torch.optim.Optimizer, module: nn.Module, loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), self.config.grad_clip, foreach=True)
        optimizer.step()

    # ---- checkpoints ------------------------------------------------------------------------------------

    def _modules(self) -> dict[str, nn.Module]:
        return {
            "actor": self.actor,
            "critic": self.critic,
            "target_critic": self.target_critic,
            "normalizer": self.normalizer,
        }

    def save(self, folder: Path, *, replay: bool = True) -> None:
        """Networks, optimisers, generator, counters and (``replay``) both buffers; safetensors + JSON only."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"{n}.{k}": v.contiguous() for n, m in self._modules().items() for k, v in m.state_dict().items()}
        for name, optimizer in (("actor", self.actor_optimizer), ("critic", self.critic_optimizer)):
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{name}.{index}.{k}": v.contiguous() for k, v in state.items()}
        tensors["generator"] = self.generator.get_state()
        save_file(tensors, folder / "algorithm.safetensors")
        counters = {"steps": self.steps, "updates": self.updates, "config": asdict(self.config)}
        (folder / "algorithm.json").write_text(json.dumps(counters, indent=2))
        if replay:
            self.replay.save(folder / "online")
            self.demonstrations.save(folder / "demonstrations")

    def load(self, folder: Path, *, replay: bool = True) -> None:
        """Read what ``save`` wrote.

        Raises:
            UserError: network shapes differ from this configuration's.
        """
        tensors = load_file(folder / "algorithm.safetensors")
        for name, module in self._modules().items():
            part = {k[len(name) + 1 :]: v for k, v in tensors.items() if k.startswith(name + ".")}
            try:
                module.load_state_dict(part)
            except RuntimeError as error:
                raise UserError(f"{folder}: {name} does not fit this configuration ({str(error).splitlines()[-1].strip()})") from error
        for name, optimizer in (("actor", self.actor_optimizer), ("critic", self.critic_optimizer)):
            prefix = f"optimizer.{name}."
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(prefix):
                    index, field_name = key[len(prefix) :].split(".", 1)
                    state.setdefault(int(index), {})[field_name] = value
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        self.generator.set_state(tensors["generator"])
        counters = json.loads((folder / "algorithm.json").read_text())
        self.steps, self.updates = counters["steps"], counters["updates"]
        if replay:
            self.replay.load(folder / "online")
            self.demonstrations.load(folder / "demonstrations")
        self._set_phase()


def make(base: Policy, env_spec: EnvSpec, num_envs: int, **settings: Any) -> ResidualTD3:
    """The algorithm from configuration keys; unknown keys fail with the nearest field."""
    from vla_rl.config import typed

    return ResidualTD3(typed(ResidualTD3Config, settings), base, env_spec, num_envs)
