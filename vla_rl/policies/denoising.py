"""One denoising step as a Gaussian, for diffusion (DDPM, DDIM) and flow heads alike.

Every such head moves along x_i = alpha_i data + sigma_i noise. From its network's output at x_t follow estimates of data
and noise; the step to the next, cleaner level s is then the Gaussian (DDIM, arXiv 2010.02502, eq. 12, for any alpha, sigma)

    mean = alpha_s data + sqrt(sigma_s^2 - std^2) noise
    std  = eta * sigma_s / sigma_t * sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2)

whose marginals do not depend on eta: 0 is the deterministic sampler (for a flow exactly Euler's step of its ODE), 1 the
ancestral one (for a flow the SDE of the same marginals). DPPO (arXiv 2409.00588) needs its log-probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vla_rl.errors import UserError

PREDICTIONS = ("epsilon", "sample", "v_prediction", "to_data", "to_noise")
"""What a network gives: noise, data, diffusion's v, or a flow's velocity towards data or towards noise."""


@dataclass(frozen=True)
class Chain:
    """The levels of one head, noisiest first; K steps.

    Attributes:
        times: [K] what the network is given as time.
        alpha: [K + 1] share of data at each level; the last is where the chain ends.
        sigma: [K + 1] standard deviation of noise.
        prediction: one of ``PREDICTIONS``.
        clip: data estimates are clipped to this; None = not.
        rederive: the noise estimate follows from the clipped data (DDPM), instead of from the network alone (DDIM).
    """

    times: Tensor
    alpha: Tensor
    sigma: Tensor
    prediction: str
    clip: float | None = None
    rederive: bool = False

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise UserError(f"prediction={self.prediction}: choose from {', '.join(PREDICTIONS)}")

    @property
    def steps(self) -> int:
        """K."""
        return len(self.times)

    def estimates(self, output: Tensor, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """(data, noise) [B, T, A] that the network's ``output`` at ``x`` speaks of.

        Args:
            output: of the network [B, T, A].
            x: noisy actions [B, T, A].
            step: index of each row's step [B] int64, 0 = noisiest.
        """
        alpha, sigma = self._at(self.alpha, step, x), self._at(self.sigma, step, x)
        if self.prediction == "epsilon":
            noise = output
            data = (x - sigma * noise) / alpha
        elif self.prediction == "sample":
            data = output
            noise = (x - alpha * data) / sigma
        elif self.prediction == "v_prediction":
            data, noise = alpha * x - sigma * output, alpha * output + sigma * x
        else:  # a straight path: alpha + sigma = 1
            towards_noise = output if self.prediction == "to_noise" else -output
            data, noise = x - sigma * towards_noise, x + alpha * towards_noise
        if self.clip is not None:
            data = data.clamp(-self.clip, self.clip)
        if self.rederive:
            noise = (x - alpha * data) / sigma
        return data, noise

    def gaussian(self, output: Tensor, x: Tensor, step: Tensor, eta: float) -> tuple[Tensor, Tensor]:
        """Mean [B, T, A] and standard deviation [B, 1, 1] of the next, cleaner x.

        Args:
            output: of the network at ``x`` [B, T, A].
            x: noisy actions [B, T, A].
            step: index of each row's step [B] int64.
            eta: 0 (deterministic) to 1 (ancestral).
        """
        data, noise = self.estimates(output, x, step)
        alpha, sigma = self._at(self.alpha, step + 1, x), self._at(self.sigma, step + 1, x)
        std = eta * self._at(self._ancestral(), step, x)
        return alpha * data + (sigma.square() - std.square()).clamp(min=0).sqrt() * noise, std

    def _ancestral(self) -> Tensor:
        """[K] standard deviations at eta = 1."""
        alpha, sigma = self.alpha.double(), self.sigma.double()
        kept = alpha[:-1] / alpha[1:]
        fresh = (sigma[:-1].square() - kept.square() * sigma[1:].square()).clamp(min=0).sqrt()
        return (sigma[1:] / sigma[:-1] * fresh).to(self.alpha.dtype)

    @staticmethod
    def _at(table: Tensor, step: Tensor, x: Tensor) -> Tensor:
        return table.to(x)[step].view(-1, *[1] * (x.dim() - 1))


def log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Elementwise log-density of independent Gaussians; shapes broadcast."""
    return -0.5 * ((x - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)


def of_scheduler(scheduler: Any, steps: int) -> Chain:
    """The chain of a diffusers ``DDPMScheduler`` or ``DDIMScheduler`` with ``steps`` inference steps.

    Raises:
        UserError: another scheduler, a learned variance or thresholding, whose steps are not these Gaussians.
    """
    kind, config = type(scheduler).__name__, scheduler.config
    if kind not in ("DDPMScheduler", "DDIMScheduler"):
        raise UserError(
            f"{kind} has no tractable standard deviation here: use DDPMScheduler or DDIMScheduler"
        )
    variance = config.get("variance_type", "fixed_small")
    if variance not in ("fixed_small", "fixed_small_log") or config.get("thresholding"):
        raise UserError(
            f"{kind} with variance_type={variance}, thresholding={config.get('thresholding')}: set fixed_small and false"
        )
    total = config.num_train_timesteps
    if not 1 <= steps <= total:
        raise UserError(f"{steps} denoising steps: the scheduler has 1 to {total}")
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps.cpu().long()
    ddim = kind == "DDIMScheduler"
    stride = total // steps
    last = scheduler.final_alpha_cumprod if ddim else torch.tensor(1.0)
    before = [scheduler.alphas_cumprod[t] for t in times]
    after = [scheduler.alphas_cumprod[t - stride] if t - stride >= 0 else last for t in times]
    if steps > 1 and not torch.allclose(torch.stack(before[1:]), torch.stack(after[:-1])):
        raise UserError(
            f"timestep_spacing={config.timestep_spacing}: its levels do not join; use leading or linspace"
        )
    levels = torch.stack([before[0], *after]).double()
    return Chain(
        times,
        levels.sqrt().float(),
        (1 - levels).clamp(min=0).sqrt().float(),
        config.prediction_type,
        float(config.clip_sample_range) if config.clip_sample else None,
        rederive=not ddim,
    )


def of_flow(steps: int, towards: str, floor: float = 0.0) -> Chain:
    """The chain of a straight flow in ``steps`` Euler steps.

    Args:
        steps: of the sampler.
        towards: ``noise`` (openpi, SmolVLA: time runs 1 -> 0) or ``data`` (time runs 0 -> 1).
        floor: least standard deviation of the path's noise (``sigma_min``); only 0 is a straight path.

    Raises:
        UserError: no steps, or a path that keeps some noise to its end.
    """
    if steps < 1:
        raise UserError(f"{steps} flow steps: at least 1")
    if floor:
        raise UserError(f"sigma_min={floor}: only flows that end without noise (0) have a chain here")
    noise = torch.linspace(1, 0, steps + 1)
    # At the first level there is no data at all; a trace of it keeps the ratios below finite.
    alpha = (1 - noise).clamp(min=1e-6)
    times = noise[:-1] if towards == "noise" else 1 - noise[:-1]
    return Chain(times, alpha, noise, f"to_{towards}")
