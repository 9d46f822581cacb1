"""A frozen diffusion or flow policy whose initial noise an actor chooses (DSRL, arXiv 2506.15799)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.errors import UserError
from vla_rl.keys import INSTRUCTION
from vla_rl.nn.squashed import SquashedGaussian
from vla_rl.policies.base import Observation, Policy
from vla_rl.policies.capabilities import Denoising, FromNoise
from vla_rl.policies.denoising import Chain
from vla_rl.policies.heads import HAVE_HEADS, gaussian_of


class NoiseSteered:
    """Chunks [B, T, A] of ``base`` from the noise magnitude * actor(features).

    A base with ``Denoising`` is sampled without noise on the way (eta = 0), so that the chunk is a function of
    the noise; any other ``FromNoise`` base (one behind a server, say) is asked as it is. With magnitude 0 nothing is
    steered: the noise is the base's own, and so is the chunk.

    Args:
        base: the frozen policy.
        features: observation -> features [B, F].
        actor: features -> the noise's place in the box (-1, 1).
        magnitude: b, half-width of the noise's box.
        repeated: one noise vector [A'] for all T' steps of the chunk.
        steps: denoising steps; None = as saved.
        generator: of exploration.
        keys: observation keys that ``features`` reads.

    Raises:
        UserError: a base that takes no noise.
    """

    def __init__(
        self,
        base: Policy,
        features: Callable[[Observation], Tensor],
        actor: SquashedGaussian,
        *,
        magnitude: float,
        repeated: bool = False,
        steps: int | None = None,
        generator: torch.Generator | None = None,
        keys: Sequence[str] = (),
    ) -> None:
        self.base, self.features, self.actor = base, features, actor
        self.magnitude, self.repeated, self.generator = magnitude, repeated, generator
        self.shape = noise_shape(base)
        self.chain = base.head.chain(steps) if isinstance(base, Denoising) else None
        vectors = tuple(k for k in keys if ".images." not in k and k != INSTRUCTION)
        pictures = tuple(k for k in keys if ".images." in k)
        self.spec = replace(
            base.spec,
            language=base.spec.language or INSTRUCTION in keys,
            state_keys=tuple(dict.fromkeys(base.spec.state_keys + vectors)),
            image_keys=tuple(dict.fromkeys(base.spec.image_keys + pictures)),
        )
        self.enabled = True
        """False: the noise is standard normal (the warm-up)."""

    def initial_state(self, batch_size: int) -> TensorDict:
        """The base's."""
        return self.base.initial_state(batch_size)

    def needs_images(self, state: TensorDict) -> Tensor:
        """The base's, or always when the actor looks."""
        if len(self.spec.image_keys) > len(self.base.spec.image_keys):
            return torch.ones(state.batch_size[0], dtype=torch.bool)
        return self.base.needs_images(state)

    def act(
        self, observation: Observation, state: TensorDict, *, deterministic: bool = False
    ) -> tuple[TensorDict, TensorDict]:
        """``action`` [B, T, A], ``noise`` [B, D] in units of ``magnitude``, and ``condition`` where the base has one."""
        count = state.batch_size[0]
        with torch.no_grad():
            chosen = self.choose(observation, count, deterministic)
            noise = self.spread(chosen)
            output, state = act_from(self.base, observation, state, noise, self.chain)
            output["noise"] = chosen
        return output, state

    def choose(self, observation: Observation, count: int, deterministic: bool) -> Tensor:
        """Noise [B, D] in units of ``magnitude``; standard normal while nothing is steered."""
        generator = None if deterministic else self.generator
        if not self.enabled or not self.magnitude:
            drawn = torch.randn(count, self.width, generator=generator)
            return drawn / (self.magnitude or 1.0)
        noise = None if deterministic else self.actor.noise(count, self.generator)
        place, _ = self.actor(self.features(observation), noise)
        return place.cpu()

    @property
    def width(self) -> int:
        """D, numbers that the actor chooses."""
        return self.shape[1] if self.repeated else self.shape[0] * self.shape[1]

    def spread(self, chosen: Tensor) -> Tensor:
        """[B, D] in units of ``magnitude`` -> the noise [B, T', A']."""
        noise = chosen * (self.magnitude or 1.0)
        if self.repeated:
            return noise[:, None].expand(-1, *self.shape)
        return noise.view(-1, *self.shape)

    def generate(self, condition: TensorDict, noise: Tensor) -> Tensor:
        """The base's chunk x [B, T', A'], normalised, from ``noise`` [B, T', A'] without noise on the way."""
        assert self.chain is not None and isinstance(self.base, Denoising)
        return _generate(self.base, self.chain, condition, noise)


def act_from(
    base: Policy, observation: Observation, state: TensorDict, noise: Tensor, chain: Chain | None = None
) -> tuple[TensorDict, TensorDict]:
    """``action`` [B, T, A] as a function of ``noise`` [B, T', A'], and ``condition`` where the base shows one.

    Args:
        base: a policy that takes a noise.
        observation: of B rows.
        state: of the base.
        noise: where its chain begins.
        chain: its steps, if not those it was saved with.
    """
    count = state.batch_size[0]
    if not isinstance(base, Denoising):
        assert isinstance(base, FromNoise)
        output, state = base.act_from_noise(observation, state, noise)
        return TensorDict({"action": output["action"]}, batch_size=[count]), state
    condition, state = base.encode(observation, state)
    chunk = base.actions_of(_generate(base, chain or base.head.chain(), condition, noise))
    return TensorDict({"action": chunk, "condition": condition}, batch_size=[count]), state


def _generate(base: Denoising, chain: Chain, condition: TensorDict, noise: Tensor) -> Tensor:
    head = base.head
    x = noise.to(next(head.network.parameters()).device)
    for step in range(chain.steps):
        x, _ = gaussian_of(head, head.network, chain, x, torch.full((len(x),), step), condition, 0.0)
    return x


def noise_shape(base: Policy) -> tuple[int, int]:
    """(T', A') of the noise that ``base`` begins from.

    Raises:
        UserError: it takes none.
    """
    if isinstance(base, Denoising) and base.head.from_noise:
        return base.head.shape
    if isinstance(base, FromNoise) and base.noise_shape is not None:
        return base.noise_shape
    raise UserError(
        f"{type(base).__name__} takes no initial noise to steer: choose a LeRobot policy of type {', '.join(HAVE_HEADS)}"
    )
