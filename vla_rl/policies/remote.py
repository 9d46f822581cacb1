"""A policy that runs elsewhere (``vla-rl serve``), with the contract of one that runs here.

The state stays on this side, so episodes survive a server that is restarted: the same request is sent again. Every wait
has a deadline.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.errors import UserError
from vla_rl.keys import TASK
from vla_rl.policies.base import Observation, PolicySpec
from vla_rl.serving.client import TOKEN_VARIABLE, Client, RemoteError, read_token
from vla_rl.serving.protocol import ProtocolError, pack_state, unpack_state

__all__ = ["TOKEN_VARIABLE", "Remote", "RemoteError", "read_token"]


class Remote(Client):
    """See the module's docstring and ``Client``."""

    def _take(self, hello: dict[str, Any]) -> None:
        try:
            spec = dict(hello["spec"])
            spec |= {key: tuple(spec[key]) for key in ("state_keys", "image_keys")}
            self.spec = PolicySpec(**spec)
            self.noise_shape = tuple(hello["noise_shape"]) if hello["noise_shape"] else None
            self._looks = hello["looks"]
            leaves = TensorDict(hello["state"]["leaves"], batch_size=[1])
            self._like = leaves.unflatten_keys("/")
        except (KeyError, TypeError, RuntimeError) as error:
            raise RemoteError(f"{self.address} answers, but not as a policy server ({error})") from error

    def _same(self) -> Any:
        return self.spec, self.noise_shape

    # ---- the policy contract ----------------------------------------------------------------------------

    def initial_state(self, batch_size: int) -> TensorDict:
        """The served policy's, of every row."""
        return self._like.expand(batch_size, *self._like.batch_size[1:]).clone()

    def needs_images(self, state: TensorDict) -> Tensor:
        """The served policy's answer; asked over the wire only where it depends on the state."""
        rows = state.batch_size[0]
        if self._looks == "ask":
            return self._ask({"method": "needs_images", "state": pack_state(state)})["rows"]
        return torch.full((rows,), self._looks == "always")

    def act(
        self, observation: Observation, state: TensorDict, *, deterministic: bool = False
    ) -> tuple[TensorDict, TensorDict]:
        """``action`` [B, A] or [B, T, A]."""
        return self._decide(observation, state, deterministic=deterministic)

    def act_from_noise(
        self, observation: Observation, state: TensorDict, noise: Tensor
    ) -> tuple[TensorDict, TensorDict]:
        """As ``act``, from ``noise`` [B, T', A'].

        Raises:
            UserError: the served policy takes none.
        """
        if self.noise_shape is None:
            raise UserError(f"the policy at {self.address} does not act from a given noise")
        return self._decide(observation, state, deterministic=True, noise=noise.float())

    def _decide(
        self, observation: Observation, state: TensorDict, **asked: Any
    ) -> tuple[TensorDict, TensorDict]:
        rows = state.batch_size[0]
        missing = [k for k in (*self.spec.state_keys, *self.spec.image_keys) if k not in observation]
        if missing:
            have = ", ".join(k for k in observation if k != TASK) or "nothing"
            raise UserError(f"the policy at {self.address} needs {missing[0]}; the observation has {have}")
        seen: dict[str, Any] = {k: observation[k].float() for k in self.spec.state_keys}
        seen |= {k: observation[k] for k in self.spec.image_keys}
        seen[TASK] = list(observation.get(TASK, [""] * rows))
        reply = self._ask({"method": "act", "observation": seen, "state": pack_state(state)} | asked)
        try:
            after = unpack_state(reply["state"], self._like)
            return TensorDict({"action": reply["action"]}, batch_size=[rows]), after
        except (KeyError, ProtocolError, RuntimeError) as error:
            raise RemoteError(f"{self.address} gave an answer that does not fit: {error}") from error
