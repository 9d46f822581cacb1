"""A policy that runs elsewhere (``vla-rl serve``), with the contract of one that runs here.

The state stays on this side, so episodes survive a server that is restarted: the same request is sent again. Every wait
has a deadline.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

import vla_rl
from vla_rl.errors import UserError
from vla_rl.keys import TASK
from vla_rl.policies.base import Observation, PolicySpec
from vla_rl.serving.protocol import MAX_BYTES, VERSION, ProtocolError, pack, pack_state, unpack, unpack_state

log = logging.getLogger("vla_rl.remote")

TOKEN_VARIABLE = "VLA_RL_TOKEN"


class RemoteError(UserError):
    """The server cannot be reached, or refuses."""


class Remote:
    """See the module's docstring.

    Args:
        address: ``ws://host:port`` or ``wss://host:port``.
        token_file: file with the server's token; None = the environment variable ``VLA_RL_TOKEN``.
        timeout: seconds that one answer may take.
        patience: seconds in which a server that has gone may come back; the caller waits meanwhile.
        authority: PEM file with the certificate to trust under ``wss``; None = the system's.

    Raises:
        UserError: no token, no server, a wrong token or another protocol.
    """

    def __init__(
        self,
        address: str,
        *,
        token_file: str | Path | None = None,
        timeout: float = 30.0,
        patience: float = 120.0,
        authority: str | Path | None = None,
    ) -> None:
        self.address, self.timeout, self.patience = address, timeout, patience
        self._token = read_token(token_file)
        self._authority = authority
        self._connection: ClientConnection | None = None
        self._number = 0
        hello = self._ask({"method": "hello", "protocol": VERSION}, patience=0.0)
        self._take(hello)

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

    # ---- the wire ---------------------------------------------------------------------------------------

    def _ask(self, message: dict[str, Any], *, patience: float | None = None) -> dict[str, Any]:
        """The answer to ``message``, sent again for as long as the server may come back."""
        patience = self.patience if patience is None else patience
        until, pause = time.monotonic() + patience, 0.2
        while True:
            try:
                return self._once(message)
            except (ConnectionClosed, OSError, TimeoutError) as error:
                self.close()
                if time.monotonic() + pause > until:
                    late = f" for {patience:g} s" if patience else ""
                    raise RemoteError(
                        f"the policy server {self.address} does not answer{late} ({type(error).__name__}: {error}): "
                        "start it (vla-rl serve), or check the address"
                    ) from error
                log.warning(
                    "%s is gone (%s): trying again for %.0f s", self.address, error, until - time.monotonic()
                )
                time.sleep(pause)
                pause = min(2 * pause, 5.0)

    def _once(self, message: dict[str, Any]) -> dict[str, Any]:
        if self._connection is None:
            self._connection = self._connect()
            if (
                message["method"] != "hello"
            ):  # a restarted server may be of another version, or serve something else
                self._greet_again()
        return self._exchange(message)

    def _greet_again(self) -> None:
        spec, shape = self.spec, self.noise_shape
        self._take(self._exchange({"method": "hello", "protocol": VERSION}))
        if (self.spec, self.noise_shape) != (spec, shape):
            raise RemoteError(
                f"{self.address} has come back with another policy: start again, or serve the old one"
            )

    def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._connection is not None
        self._number += 1
        self._connection.send(pack({"id": self._number} | message))
        try:
            reply = unpack(self._connection.recv(timeout=self.timeout))
        except ProtocolError as error:
            raise RemoteError(f"{self.address} sends what is no message: {error}") from error
        if "error" in reply:
            raise RemoteError(f"{self.address} refuses: {reply['error']}")
        if reply.pop("id", None) != self._number:
            raise RemoteError(f"{self.address} answers another question: is something between us and it?")
        return reply

    def _connect(self) -> ClientConnection:
        context = None
        if self.address.startswith("wss:"):
            context = ssl.create_default_context(cafile=str(self._authority) if self._authority else None)
        try:
            return connect(
                self.address,
                additional_headers={"Authorization": f"Bearer {self._token}"},
                user_agent_header=f"vla_rl/{vla_rl.__version__}",
                open_timeout=min(10.0, self.timeout),
                close_timeout=2,
                max_size=MAX_BYTES,
                ssl=context,
                compression=None,
                proxy=None,
            )
        except InvalidStatus as error:
            if error.response.status_code == 401:
                raise RemoteError(
                    f"{self.address} refuses the token: policy.token_file or {TOKEN_VARIABLE}"
                ) from error
            raise RemoteError(f"{self.address} answers with HTTP {error.response.status_code}") from error
        except (InvalidURI, InvalidHandshake, ssl.SSLError) as error:
            raise RemoteError(f"{self.address} is no policy server's address: {error}") from error

    def close(self) -> None:
        """Leave; the next question connects again."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()


def read_token(file: str | Path | None) -> str:
    """The bearer token, from a file or ``VLA_RL_TOKEN``.

    Raises:
        UserError: neither.
    """
    if file is None:
        token = os.environ.get(TOKEN_VARIABLE, "")
        if not token:
            raise UserError(
                f"no token: set policy.token_file to the file that vla-rl serve names, or {TOKEN_VARIABLE}"
            )
        return token.strip()
    try:
        return Path(file).expanduser().read_text().strip()
    except OSError as error:
        raise UserError(f"policy.token_file={file} cannot be read ({error.strerror})") from error
