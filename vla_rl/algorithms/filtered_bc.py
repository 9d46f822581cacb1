"""Filtered behaviour cloning as a baseline: imitate what succeeded, with no critic.

The same frozen base, the same bounded per-step correction, the same demonstrations and the same exploration as
``ResidualTD3``; the correction is regressed on the actions of successful episodes (demonstrations and the policy's
own) instead of climbing a value. It shows what the value function is worth.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from vla_rl.algorithms.checkpoint import load_learner, save_learner
from vla_rl.algorithms.descent import descend
from vla_rl.algorithms.experience import Encoder, Experience
from vla_rl.environment import EnvSpec
from vla_rl.errors import NonFiniteError, UserError
from vla_rl.nn.correction import Actor
from vla_rl.policies.base import Policy
from vla_rl.policies.residual import ActionBox, Residual, action_scale


@dataclass
class FilteredBCConfig:
    """Settings; names and units as in ``ResidualTD3Config``.

    Attributes:
        scale: bound of the correction as a fraction of half the action range.
        gripper_scale: the same for dimensions named ``gripper``; None = ``scale``.
        observation_keys: what the actor sees.
        image_features: width of the image vector per camera, when a camera is named above.
        encoder: ``vit``, ``conv`` or ``keypoints``.
        image_shift: pixels of random shift.
        warmup_steps: base only, with uniform noise ``warmup_noise``.
        utd: updates per environment step.
        first_updates: updates right after the warm-up, on demonstrations and the base's successes.
        batch_size: transitions per update.
        demonstration_share: share of each batch from demonstrations (when there are any).
        hidden: hidden widths of the actor.
        layer_norm: False only for ablations.
        actor_lr: Adam step size.
        exploration: std of the exploration noise, fraction of half the range.
        warmup_noise: half-width of the warm-up's uniform noise, fraction of half the range.
        capacity: frames of successful episodes.
        demonstration_capacity: frames of demonstrations.
    """

    scale: Any = 0.3
    gripper_scale: float | None = None
    observation_keys: list[str] = field(default_factory=list)
    image_features: int = 64
    encoder: str = "vit"
    image_shift: int = 4
    warmup_steps: int = 3000
    utd: float = 0.5
    first_updates: int = 1500
    batch_size: int = 256
    demonstration_share: float = 0.5
    hidden: list[int] = field(default_factory=lambda: [128, 128])
    layer_norm: bool = True
    actor_lr: float = 3e-4
    exploration: float = 0.1
    warmup_noise: float = 0.2
    capacity: int = 200_000
    demonstration_capacity: int = 50_000


class FilteredBC:
    """See the module's docstring.

    Args:
        config: settings.
        base: one action per step, frozen.
        env_spec: the environment's dimensions and action box.
        num_envs: environment rows whose frames will come.

    Raises:
        UserError: a setting that does not fit the environment.
    """

    on_policy = False

    def __init__(self, config: FilteredBCConfig, base: Policy, env_spec: EnvSpec, num_envs: int) -> None:
        if config.batch_size < 1 or config.utd < 0 or config.warmup_steps < 0:
            raise UserError(
                "algorithm.batch_size, utd and warmup_steps must not be negative (batch_size >= 1)"
            )
        self.config, self.base = config, base
        self.box = ActionBox(env_spec)
        self.scale = action_scale(config.scale, env_spec, config.gripper_scale)
        self.encoder = Encoder(
            env_spec, config.observation_keys, config.image_features, config.encoder, config.image_shift
        )
        self.actor = Actor(self.encoder.features, env_spec.action_dim, config.hidden, config.layer_norm)
        seen = [p for p in self.encoder.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam([*self.actor.parameters(), *seen], lr=config.actor_lr, fused=True)
        # The warm-up is filtered as the rest is: no buffer of its own.
        self.experience = Experience(
            config.capacity, 0, config.demonstration_capacity, num_envs, self.encoder.keys
        )
        seed = torch.initial_seed() % 2**31
        self.generator = torch.Generator().manual_seed(seed)
        self.acting_generator = torch.Generator().manual_seed(seed + 1)
        self.steps = self.updates = self.offline = 0
        self.pending: dict[int, list[TensorDict]] = defaultdict(list)
        """Frames of each row's episode in flight; stored if it ends well."""
        self.policy, self.eval_policy = (
            Residual(
                base,
                self.box,
                self.encoder,
                self.actor,
                self.scale,
                observation_keys=self.encoder.keys,
                generator=self.acting_generator,
            )
            for _ in range(2)
        )
        self._set_phase()

    def _set_phase(self) -> None:
        config, policy = self.config, self.policy
        warming = self.steps < config.warmup_steps
        policy.enabled = not warming
        policy.uniform_noise = config.warmup_noise if warming else 0.0
        policy.noise = 0.0 if warming else config.exploration

    def observe(self, frames: TensorDict, rows: Tensor) -> None:
        """Hold frames back until their episode ends; keep it if it ended in success."""
        for i, row in enumerate(rows.tolist()):
            frame: Any = frames[i : i + 1]
            self.pending[row].append(frame.exclude("forget"))
            if "forget" in frames.keys() and frames["forget"][i]:
                del self.pending[row][-int(frames["forget"][i]) :]
            if bool(frame["final"]):
                episode = self.pending.pop(row)
                if len(episode) > 1 and bool(episode[-2]["reward"] > 0):
                    whole: Any = torch.cat(episode)  # type: ignore[arg-type]
                    self.experience.append(whole, torch.full((len(whole),), row), warming=False)
        self.steps += int((~frames["final"]).sum())
        self._set_phase()

    def add_demonstrations(self, frames: TensorDict, rows: Tensor | None = None) -> None:
        """Store whole demonstration episodes, apart from online data."""
        self.experience.add_demonstrations(frames, rows)

    @property
    def ready(self) -> bool:
        """Whether the warm-up is over and anything has succeeded yet."""
        have = (
            len(self.experience.demonstrations)
            or len(self.experience.online) > 2 * self.experience.online.rows
        )
        return self.steps >= self.config.warmup_steps and bool(have)

    def updates_due(self, env_steps: int | None = None) -> int:
        """``utd`` per step after the warm-up, and ``first_updates`` at its end."""
        steps = self.steps if env_steps is None else env_steps
        if not self.ready or steps < self.config.warmup_steps:
            return 0
        earned = self.config.first_updates + int((steps - self.config.warmup_steps) * self.config.utd)
        return max(0, earned + self.offline - self.updates)

    def update(self) -> dict[str, Tensor]:
        """One regression step: scale * actor(s, a_base) towards clip(a - a_base, scale), in box units.

        Raises:
            NonFiniteError: the loss is NaN or infinite.
        """
        config = self.config
        self._fit_normalizer()
        batch = self.experience.batch(
            config.batch_size, config.demonstration_share, 0.0, 1, 1.0, self.generator
        )
        return self._clone(batch)

    def update_offline(self) -> dict[str, Tensor]:
        """``update`` on demonstrations alone; those that the steps earn come on top."""
        self._fit_normalizer()
        batch = self.experience.demonstrations.sample(self.config.batch_size, 1, 1.0, self.generator)
        self.offline += 1
        return self._clone(batch)

    def _fit_normalizer(self) -> None:
        if not self.updates:
            for observation in self.experience.observations():
                if self.encoder.vector_keys:
                    self.encoder.normalizer.update(self.encoder.vectors(observation))
            self.encoder.normalizer.freeze()

    def _clone(self, batch: TensorDict) -> dict[str, Tensor]:
        features = self.encoder(batch["observation"], True, self.generator)
        base = self.box.normalize(batch["base_action"])
        wanted = self.box.normalize(batch["action"])[:, None] - base
        wanted = torch.maximum(torch.minimum(wanted, self.scale), -self.scale)
        loss = (self.scale * self.actor(features, base) - wanted).square().mean()
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the cloning loss is {loss.item()} at update {self.updates}")
        descend(self.optimizer, loss)
        self.updates += 1
        return {"actor_loss": loss.detach()}

    def _modules(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "actor": self.actor}

    def _generators(self) -> dict[str, torch.Generator]:
        return {"learning": self.generator, "acting": self.acting_generator}

    def save(self, folder: Path, *, replay: bool = True) -> None:
        """Network, optimiser, generators, counters and (``replay``) the buffers.

        Episodes in flight are not saved: the loop closes them before every checkpoint.

        Raises:
            NonFiniteError: a weight is not finite; nothing is written.
            UserError: no space left.
        """
        counters = {"steps": self.steps, "updates": self.updates, "offline": self.offline}
        counters |= {"config": asdict(self.config)}
        save_learner(folder, self._modules(), {"actor": self.optimizer}, self._generators(), counters)
        if replay:
            self.experience.save(folder / "replay")

    def load(self, folder: Path, *, replay: bool = True) -> None:
        """Read what ``save`` wrote.

        Raises:
            UserError: missing or truncated files, or shapes that differ from this configuration's.
        """
        counters = load_learner(folder, self._modules(), {"actor": self.optimizer}, self._generators())
        self.steps, self.updates = counters["steps"], counters["updates"]
        self.offline = counters.get("offline", 0)
        self.pending.clear()
        if replay:
            self.experience.load(folder / "replay")
        self._set_phase()
