"""What a policy may offer beyond ``act``; an algorithm or wrapper asks for the protocol it needs."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from tensordict import TensorDict
from torch import Tensor

from vla_rl.policies.base import Observation
from vla_rl.policies.heads import Head
from vla_rl.policies.token_head import TokenHead


@runtime_checkable
class FromNoise(Protocol):
    """A flow or diffusion policy whose initial noise can be chosen (noise steering)."""

    noise_shape: tuple[int, int] | None
    """(T', A') of the noise of one row, as the model pads it; None = the loaded model takes none."""

    def act_from_noise(
        self, observation: Observation, state: TensorDict, noise: Tensor
    ) -> tuple[TensorDict, TensorDict]:
        """As ``act``, from ``noise`` [B, T', A'] float32."""
        ...


@runtime_checkable
class Denoising(Protocol):
    """A flow or diffusion policy whose every denoising step can be looked at and trained."""

    @property
    def head(self) -> Head:
        """Its denoiser; raises ``UserError`` when the loaded model has none."""
        ...

    def encode(self, observation: Observation, state: TensorDict) -> tuple[TensorDict, TensorDict]:
        """What ``head`` is conditioned on [B, ...], and the next state."""
        ...

    def actions_of(self, x: Tensor) -> Tensor:
        """Action chunks [B, T, A] in environment units, of the head's denoised ``x`` [B, T', A']."""
        ...


@runtime_checkable
class Tokens(Protocol):
    """A policy that says its chunk word by word, and whose words can be scored and trained."""

    @property
    def token_head(self) -> TokenHead:
        """Its network over words; raises ``UserError`` when the loaded model has none."""
        ...

    def encode_tokens(self, observation: Observation, state: TensorDict) -> tuple[TensorDict, TensorDict]:
        """What ``token_head`` is conditioned on [B, ...], and the next state."""
        ...

    def actions_of_tokens(self, tokens: Tensor) -> Tensor:
        """Action chunks [B, T, A] in environment units, of words [B, T A]."""
        ...


@runtime_checkable
class Remembers(Protocol):
    """A policy that decides on its last ``history`` observations, kept in its state."""

    history: int
    """n, observations per decision; 1 = only the present one."""

    def observe(self, observation: Observation, state: TensorDict) -> TensorDict:
        """The state after one more observation, without a decision."""
        ...


@runtime_checkable
class Continues(Protocol):
    """A policy whose next chunk can go on from what is left of the present one (real-time chunking)."""

    def check_continues(self) -> None:
        """Raises ``UserError`` when this one cannot, with the reason."""
        ...

    def act_continuing(
        self, observation: Observation, state: TensorDict, left: Tensor, delay: int
    ) -> tuple[TensorDict, TensorDict]:
        """As ``act``, near ``left`` [B, L, A], the actions not yet executed; the first ``delay`` will be, whatever comes."""
        ...
