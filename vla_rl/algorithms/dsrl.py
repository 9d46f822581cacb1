"""DSRL: reinforcement learning of the noise that a frozen diffusion or flow policy begins from (arXiv 2506.15799).

The base without noise on the way is a function of (observation, initial noise), so the noise is an action and the base
part of the environment; no gradient goes through it. Two ways to learn a value of noise:

- ``sac``: SAC with the noise as action. The base is a black box.
- ``na`` (noise aliasing): a critic of real chunks learns from the environment, a critic of noise is regressed on what the
  first says of the chunk that the base makes of it. The base is run in the updates, so it needs ``Denoising``.

One reward per decision: that of its steps, minus 1 (``step_cost``) until the task is done.

GR-RL's noise predictor (arXiv 2512.01801, eq. of its online stage) is ``na`` with ``penalty``: instead of a narrow box, a price on
noise that is longer than the base has been trained on.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from vla_rl.algorithms.checkpoint import load_learner, save_learner
from vla_rl.algorithms.decisions import Decisions
from vla_rl.algorithms.descent import descend
from vla_rl.algorithms.elsewhere import FromDecisions
from vla_rl.algorithms.experience import Encoder
from vla_rl.algorithms.products import check_precision, compiled, products
from vla_rl.data.ring import Ring
from vla_rl.environment import EnvSpec
from vla_rl.errors import NonFiniteError, UserError
from vla_rl.nn.ensemble import EnsembleMLP, polyak
from vla_rl.nn.squashed import SquashedGaussian
from vla_rl.policies.base import Policy
from vla_rl.policies.capabilities import Denoising
from vla_rl.policies.noise_steered import NoiseSteered, noise_shape
from vla_rl.policies.open_loop import OpenLoop


@dataclass
class DSRLConfig:
    """Settings; counts in decisions (chunks) unless said otherwise.

    Attributes:
        variant: ``sac`` or ``na``.
        magnitude: b: the noise is chosen from (-b, b) in every number; 0 = the base, unsteered.
        penalty: c: price on noise beyond ``free``, c max(||noise||^2 / 2 - free D, 0) for its D numbers; 0 = none.
        free: per number; 0.5 = what standard normal noise has on average.
        repeated: one noise vector for all steps of a chunk: fewer numbers, learned sooner; a base may need noise that differs.
        denoising_steps: of the base while steered; None = as saved.
        warmup: decisions with the base's own noise before any update.
        first_updates: updates right after the warm-up.
        utd: updates per decision.
        noise_updates: regressions of the noise critic per update (``na``).
        normal_share: share of the noise that these regressions see drawn from the base's own distribution (``na``).
        batch_size: decisions per update.
        gamma: discount per decision.
        step_cost: taken off every decision's reward.
        actor_lr: Adam step size.
        critic_lr: of the critics.
        tau: of the target critics.
        critics: members of each ensemble.
        temperature: initial weight of the entropy; learned.
        target_entropy: of the actor, in its box (-1, 1); None = minus the count of numbers that it chooses (SAC's).
        hidden: hidden widths of all networks.
        capacity: decisions kept.
        observation_keys: what actor and critics see; () = proprioception, the instruction and, in simulation, privileged
            state.
        image_features: width of the image vector per camera, when a camera is named above.
        encoder: ``vit``, ``conv`` or ``keypoints``.
        image_shift: pixels of random shift.
        compile: torch.compile of the loss functions.
        precision: of the matrix products of an update: ``float32``, or ``bfloat16``, which pays where a processor has it.
    """

    variant: str = "sac"
    magnitude: float = 3.0
    penalty: float = 0.0
    free: float = 0.5
    repeated: bool = True
    denoising_steps: int | None = None
    warmup: int = 300
    first_updates: int = 300
    utd: float = 10.0
    noise_updates: int = 1
    normal_share: float = 0.5
    batch_size: int = 256
    gamma: float = 0.97
    step_cost: float = 1.0
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    tau: float = 0.005
    critics: int = 2
    temperature: float = 0.02
    target_entropy: float | None = None
    hidden: list[int] = field(default_factory=lambda: [256, 256])
    capacity: int = 50_000
    observation_keys: list[str] = field(default_factory=list)
    image_features: int = 64
    encoder: str = "vit"
    image_shift: int = 4
    compile: bool = False
    precision: str = "float32"


def _check(config: DSRLConfig) -> None:
    if config.variant not in ("sac", "na"):
        raise UserError(f"algorithm.variant={config.variant}: choose sac or na")
    if config.magnitude < 0:
        raise UserError(f"algorithm.magnitude={config.magnitude} must not be negative")
    if config.penalty < 0 or config.free < 0:
        raise UserError(f"algorithm.penalty={config.penalty} and free={config.free} must not be negative")
    for name in ("batch_size", "critics", "capacity"):
        if getattr(config, name) < 1:
            raise UserError(f"algorithm.{name}={getattr(config, name)} must be at least 1")
    if config.temperature <= 0:
        raise UserError(f"algorithm.temperature={config.temperature} must be above 0")
    check_precision(config.precision)


class DSRL(FromDecisions):
    """See the module's docstring.

    Args:
        config: settings.
        base: ``OpenLoop`` over a policy that takes an initial noise, frozen.
        env_spec: the environment's dimensions.
        num_envs: environment rows whose frames will come.
        device: of actor and critics; the policy is where it was loaded.

    Raises:
        UserError: a base that takes no noise (or, with ``na``, shows no denoising steps), or a setting that does not fit.
    """

    takes_demonstrations = False
    on_policy = False

    def __init__(
        self, config: DSRLConfig, base: Policy, env_spec: EnvSpec, num_envs: int, device: str = "cpu"
    ) -> None:
        _check(config)
        if not isinstance(base, OpenLoop):
            raise UserError(
                f"{type(base).__name__} gives no action chunks: DSRL needs a diffusion or flow policy"
            )
        shape = noise_shape(base.base)
        if config.variant == "na" and not isinstance(base.base, Denoising):
            raise UserError(
                f"algorithm.variant=na runs the base in its updates, which {type(base.base).__name__} hides: sac"
            )
        self.config, self.base, self.device = config, base, torch.device(device)
        self.encoder = Encoder(
            env_spec, config.observation_keys, config.image_features, config.encoder, config.image_shift
        ).to(device)
        width, hidden = self.encoder.features, config.hidden
        chosen = shape[1] if config.repeated else shape[0] * shape[1]
        self.actor = SquashedGaussian(width, hidden, chosen).to(device)
        self.noise_critic = EnsembleMLP(config.critics, width + chosen, hidden).to(device)
        aliased = config.variant == "na"
        self.executed = base.horizon * env_spec.action_dim
        self.critic = (
            EnsembleMLP(config.critics, width + self.executed, hidden).to(device)
            if aliased
            else self.noise_critic
        )
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.tensor(config.temperature, device=device).log())
        seen = [p for p in self.encoder.parameters() if p.requires_grad]
        self.optimizers = {
            "actor": torch.optim.Adam(self.actor.parameters(), lr=config.actor_lr, fused=True),
            "critic": torch.optim.Adam([*self.critic.parameters(), *seen], lr=config.critic_lr, fused=True),
            "temperature": torch.optim.Adam([self.log_temperature], lr=config.actor_lr),
        }
        if aliased:
            self.optimizers["noise"] = torch.optim.Adam(
                self.noise_critic.parameters(), lr=config.critic_lr, fused=True
            )
        self._soft_value_fn, self._critic_loss_fn, self._actor_loss_fn = compiled(
            config.compile, self._soft_value, self._critic_loss, self._actor_loss
        )
        seed = torch.initial_seed() % 2**31
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.sampling = torch.Generator().manual_seed(seed + 2)
        self.acting_generator = torch.Generator().manual_seed(seed + 1)
        self.decisions = Decisions(num_envs, self.encoder.keys, carry=("condition",) if aliased else ())
        self.ring = Ring(config.capacity)
        self.steps = self.updates = self.decided = 0
        chooser = NoiseSteered(
            base.base,
            self.encoder,
            self.actor,
            magnitude=config.magnitude,
            repeated=config.repeated,
            steps=config.denoising_steps,
            generator=self.acting_generator,
            keys=self.encoder.keys,
        )
        self.chooser = chooser
        self.policy = OpenLoop(chooser, base.horizon, on_decision=self._decided)
        self.eval_policy = OpenLoop(chooser, base.horizon)
        self._set_phase()

    def _set_phase(self) -> None:
        self.chooser.enabled = self.decided >= self.config.warmup and self.config.magnitude > 0

    # ---- data -------------------------------------------------------------------------------------------

    def _decided(self, rows: Tensor, output: TensorDict) -> None:
        kept = {"noise": output["noise"]}
        if self.config.variant == "na":
            kept |= {
                "condition": output["condition"],
                "chunk": output["action"][:, : self.policy.horizon].flatten(1),
            }
        self.decisions.decided(rows, TensorDict(kept, batch_size=[len(rows)]))

    def _stored(self) -> None:
        over = self.decisions.pop()
        if over is None:
            return
        own = over["own"]  # what a person did instead says nothing of this noise
        self.decided += int(own.sum())
        if own.any():
            self.ring.append(over[own].exclude("own"))
        self._set_phase()

    def reached(self) -> dict[str, int]:
        """Steps and, which the warm-up goes by, decisions."""
        return {"steps": self.steps, "decided": self.decided}

    def be_at(self, **counts: int) -> None:
        """As ``FromDecisions``; the warm-up may be over by now."""
        super().be_at(**counts)
        self._set_phase()

    @property
    def can_update(self) -> bool:
        """Whether there is anything to draw a batch from."""
        return len(self.ring) > 0

    def add_demonstrations(self, frames: TensorDict, rows: Tensor | None = None) -> None:
        """Refused: nobody knows the noise that a demonstration came from.

        Raises:
            UserError: always.
        """
        raise UserError(
            "DSRL learns from its own decisions alone: set demonstrations=none, or pretrain on them"
        )

    # ---- learning ---------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the warm-up is over."""
        return self.decided >= self.config.warmup and len(self.ring) > 0

    def updates_due(self, env_steps: int | None = None) -> int:
        """``utd`` per decision after the warm-up, and ``first_updates`` at its end."""
        if not self.ready or not self.config.magnitude:
            return 0
        earned = self.config.first_updates + int((self.decided - self.config.warmup) * self.config.utd)
        return max(0, earned - self.updates)

    def update(self) -> dict[str, Tensor]:
        """One step of the critics, the actor and the temperature.

        Raises:
            NonFiniteError: a loss is NaN or infinite.
        """
        config = self.config
        if not self.updates and self.encoder.vector_keys:
            stored = self.ring.rows[: len(self.ring)]
            self.encoder.normalizer.update(self.encoder.vectors(stored["observation"]))
            self.encoder.normalizer.freeze()
        batch = self.ring.sample(config.batch_size, self.sampling).to(self.device)
        features = self.encoder(batch["observation"], True, self.generator)
        with torch.no_grad():
            target = self._target(batch)
        taken = batch["chunk"] if config.variant == "na" else batch["noise"]
        with products(self.device, config.precision):
            loss, mean_value = self._critic_loss_fn(features, taken, target)
        metrics = {"critic_loss": loss, "q": mean_value}
        self._step(loss, "critic")
        features = features.detach()
        if config.variant == "na":
            for _ in range(config.noise_updates):
                metrics["noise_loss"] = self._alias(features, batch)
        metrics |= self._improve(features)
        polyak(self.target, self.critic, config.tau)
        self.updates += 1
        return {name: value.detach().cpu() for name, value in metrics.items()}

    def _target(self, batch: TensorDict) -> Tensor:
        """[B] r + gamma (minimum of the target critics - alpha log pi), beyond a success nothing.

        Where a time limit cut the episode the next chunk's condition is not known: there the critic of noise
        speaks for that of chunks.
        """
        config = self.config
        seen = self.encoder(batch["next_observation"], True, self.generator)
        noise, temperature = self.actor.noise(len(seen), self.generator), self.log_temperature.exp()
        with products(self.device, config.precision):
            if config.variant == "na":
                place, density = self.actor(seen, noise)
                chunk = self._chunks(batch["next_condition"], place)
                value = self.target(torch.cat([seen, chunk], 1)).squeeze(-1).amin(0)
                cut = self.noise_critic(torch.cat([seen, place], 1)).squeeze(-1).amin(0)
                value = torch.where(batch["ended"], cut, value) - temperature * density
            else:
                value = self._soft_value_fn(seen, noise, temperature)
        return batch["reward"] - config.step_cost + config.gamma * ~batch["terminated"] * value

    def _soft_value(self, seen: Tensor, noise: Tensor, temperature: Tensor) -> Tensor:
        """[B] of features ``seen``: what the target critics expect of the actor's noise, and its entropy."""
        place, density = self.actor(seen, noise)
        value = self.target(torch.cat([seen, place], 1)).squeeze(-1).float()
        return value.amin(0) - temperature * density

    def _critic_loss(self, features: Tensor, taken: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        values = self.critic(torch.cat([features, taken], 1)).squeeze(-1).float()
        return (values - target).square().mean(), values.detach().mean()

    def _chunks(self, condition: TensorDict, place: Tensor) -> Tensor:
        """[B, H A] what the base makes of noise."""
        x = self.chooser.generate(condition, self.chooser.spread(place))
        base = self.chooser.base
        assert isinstance(base, Denoising)
        return base.actions_of(x)[:, : self.policy.horizon].flatten(1).to(self.device)

    def _alias(self, features: Tensor, batch: TensorDict) -> Tensor:
        """Regress the critic of noise on the critic of what the base makes of it."""
        config, count = self.config, len(features)
        with torch.no_grad():
            place, _ = self.actor(features, self.actor.noise(count, self.generator))
            normal = torch.randn(place.shape, generator=self.generator, device=self.device) / config.magnitude
            ours = torch.rand(count, 1, generator=self.generator, device=self.device) < config.normal_share
            place = torch.where(ours, normal, place)
            with products(self.device, config.precision):
                goal = self.critic(torch.cat([features, self._chunks(batch["condition"], place)], 1)).float()
        with products(self.device, config.precision):
            said = self.noise_critic(torch.cat([features, place], 1)).float()
        loss = (said - goal).square().mean()
        self._step(loss, "noise")
        return loss

    def _improve(self, features: Tensor) -> dict[str, Tensor]:
        """The actor up the critic of noise, and the temperature towards the target entropy."""
        noise, temperature = self.actor.noise(len(features), self.generator), self.log_temperature.exp()
        self.noise_critic.requires_grad_(False)
        with products(self.device, self.config.precision):
            loss, density = self._actor_loss_fn(features, noise, temperature.detach())
        self._step(loss, "actor")
        self.noise_critic.requires_grad_(True)
        goal = self.config.target_entropy
        surplus = (-density - (-self.actor.outputs if goal is None else goal)).mean()
        self._step(self.log_temperature * surplus, "temperature")
        return {"actor_loss": loss, "entropy": -density.mean(), "temperature": temperature}

    def _actor_loss(self, features: Tensor, noise: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        place, density = self.actor(features, noise)
        value = self.noise_critic(torch.cat([features, place], 1)).squeeze(-1).float().amin(0)
        loss = (temperature * density - value).mean()
        if self.config.penalty:
            length = (place * self.config.magnitude).square().sum(1) / 2
            excess = (length - self.config.free * place.shape[1]).clamp(min=0)
            loss = loss + self.config.penalty * excess.mean()
        return loss, density.detach()

    def _step(self, loss: Tensor, name: str) -> None:
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the {name} loss is {loss.item()} at update {self.updates}")
        descend(self.optimizers[name], loss)

    # ---- checkpoints ------------------------------------------------------------------------------------

    def acting_modules(self) -> dict[str, nn.Module]:
        """The networks that acting needs."""
        return {"encoder": self.encoder, "actor": self.actor}

    def _modules(self) -> Mapping[str, nn.Module]:
        modules: dict[str, nn.Module] = {
            "encoder": self.encoder,
            "actor": self.actor,
            "noise_critic": self.noise_critic,
            "target": self.target,
            "temperature": nn.ParameterDict({"log": self.log_temperature}),
        }
        return modules | ({"critic": self.critic} if self.config.variant == "na" else {})

    def _generators(self) -> dict[str, torch.Generator]:
        return {"learning": self.generator, "sampling": self.sampling, "acting": self.acting_generator}

    def save(self, folder: Path, *, replay: bool = True) -> None:
        """Networks, optimisers, generators, counters and (``replay``) the decisions.

        Raises:
            NonFiniteError: a weight is not finite; nothing is written.
            UserError: no space left.
        """
        counters = {"steps": self.steps, "updates": self.updates, "decided": self.decided}
        counters |= {"config": asdict(self.config)}
        save_learner(folder, self._modules(), self.optimizers, self._generators(), counters)
        if replay:
            self.ring.save(folder / "replay")

    def load(self, folder: Path, *, replay: bool = True) -> None:
        """Read what ``save`` wrote.

        Raises:
            UserError: missing or truncated files, or shapes that differ from this configuration's.
        """
        counters = load_learner(folder, self._modules(), self.optimizers, self._generators())
        self.steps, self.updates, self.decided = (counters[k] for k in ("steps", "updates", "decided"))
        if replay:
            self.ring.load(folder / "replay")
        self._set_phase()
