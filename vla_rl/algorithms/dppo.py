"""DPPO: PPO over the denoising steps of a diffusion or flow policy (arXiv 2409.00588; for flows arXiv 2510.25889).

Two decision processes, one inside the other: the environment is acted on in chunks, and each chunk is the end of K
denoising steps, of which the last K' are a trained copy's. Reward and critic belong to the outer one; each inner step
is a Gaussian, whose log-probability PPO works on, with the outer advantage discounted towards noisier steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vla_rl.algorithms.chunk_ppo import ChunkPPO, ChunkPPOConfig, base_of, check_settings
from vla_rl.algorithms.ppo import clip_schedule, clipped_loss, denoising_discount
from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.policies.base import Policy
from vla_rl.policies.denoised import Denoised
from vla_rl.policies.step import Step


@dataclass
class DPPOConfig(ChunkPPOConfig):
    """Settings, with those of ``ChunkPPOConfig``; names as in the paper's code where it has them. Units: denoising steps.

    Attributes:
        denoising_steps: K; None = as the policy was saved.
        trained_steps: K', the last of them, which learn; None = all.
        eta: 0 (deterministic sampler) to 1 (ancestral; for a flow the SDE of the same marginals) while collecting.
        eval_eta: the same when evaluated and deployed; None = ``eta``, the sampler that was trained.
        min_std: least standard deviation of a trained step, in normalised actions: the exploration.
        max_noise: draws of the standard normal are clamped to this.
        noise_correlation: between any two steps of a chunk, of the last denoising step's noise: 0 (white, the paper's)
            explores by jitter, near 1 by moving the whole chunk aside, which one success says more about.
        denoising_gamma: discount per denoising step.
        clip: half-width of the trust region at the last denoising step.
        clip_first: at the noisiest trained step.
        clip_rate: how late it grows from the one to the other (exponentially).
        compile: torch.compile for the denoiser's updates: a third faster on a small transformer, after a minute or two.
    """

    denoising_steps: int | None = None
    trained_steps: int | None = None
    eta: float = 1.0
    eval_eta: float | None = None
    min_std: float = 0.1
    max_noise: float = 3.0
    noise_correlation: float = 0.0
    denoising_gamma: float = 0.99
    clip: float = 0.01
    clip_first: float = 0.001
    clip_rate: float = 3.0
    compile: bool = False


def _check(config: DPPOConfig) -> None:
    check_settings(config)
    for name in ("denoising_gamma", "eta", "eval_eta"):
        value = getattr(config, name)
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"algorithm.{name}={value} is outside 0..1")
    if config.min_std <= 0:
        raise UserError(f"algorithm.min_std={config.min_std} must be above 0: it is the exploration")
    if config.trained_steps is not None and config.trained_steps < 1:
        raise UserError(f"algorithm.trained_steps={config.trained_steps}: nothing would learn; at least 1")


class DPPO(ChunkPPO):
    """See the module's docstring.

    Args:
        config: settings.
        base: ``OpenLoop`` over a policy with denoising steps, frozen.
        env_spec: the environment's dimensions.
        num_envs: environment rows whose frames will come.
        device: of the critic; the policy is where it was loaded.

    Raises:
        UserError: a base without denoising steps, or a setting that does not fit.
    """

    trained_name = "denoiser"

    def __init__(
        self, config: DPPOConfig, base: Policy, env_spec: EnvSpec, num_envs: int, device: str = "cpu"
    ) -> None:
        _check(config)
        chunks = base_of(base, "DPPO needs a diffusion or flow policy")
        super().__init__(
            config,
            lambda generator: Denoised(
                chunks.base,
                steps=config.denoising_steps,
                trained=config.trained_steps,
                eta=config.eta,
                eval_eta=config.eval_eta,
                min_std=config.min_std,
                max_noise=config.max_noise,
                correlation=config.noise_correlation,
                executed=chunks.horizon,
                generator=generator,
            ),
            chunks,
            env_spec,
            num_envs,
            device,
        )
        if config.compile:
            self.actor.compile()
        self.units = self.actor.trained
        self.clips = clip_schedule(self.units, config.clip_first, config.clip, config.clip_rate)
        self.weights = denoising_discount(self.units, config.denoising_gamma)

    def actor_loss_of(self, which: Tensor, unit: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """PPO's loss on the pairs of decisions ``which`` [B] and ``unit`` [B] among the K' trained steps, and its metrics."""
        config, batch = self.config, self.batch
        assert batch is not None
        device = next(self.actor.network.parameters()).device
        x, after = batch["chain"][which, unit].to(device), batch["chain"][which, unit + 1].to(device)
        condition = batch["condition"][which].to(device)
        absolute = (unit + self.actor.frozen).to(device)
        new, now = self.actor.evaluate(x, after, absolute, condition)
        advantage = self.advantage_of(which) * self.weights[unit]
        old, clip = batch["log_prob"][which, unit].to(device), self.clips[unit].to(device)
        loss, metrics = clipped_loss(new, old, advantage.to(device), clip)
        more, found = self.beside(now, which, unit, new - old)
        loss, metrics = loss + more, metrics | found
        if config.base_kl:
            divergence = self.actor.from_base(now, x, absolute, condition)
            loss = loss + config.base_kl * divergence
            metrics["base_kl"] = divergence.detach()
        return loss, metrics

    def beside(
        self, now: Step, which: Tensor, unit: Tensor, log_ratio: Tensor
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """What is made small beside PPO's loss, and its metrics: nothing here.

        Args:
            now: what the pairs' steps are drawn from [B].
            which: decisions [B].
            unit: trained steps [B].
            log_ratio: of probabilities, now to when drawn [B].
        """
        return 0.0, {}
