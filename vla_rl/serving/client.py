"""The client's side of a served thing: one question, one answer, sent again while the server may come back; every wait has a deadline."""

from __future__ import annotations

import logging
import os
import ssl
import time
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

import vla_rl
from vla_rl.errors import UserError
from vla_rl.serving.protocol import MAX_BYTES, VERSION, ProtocolError, pack, unpack

log = logging.getLogger("vla_rl.remote")

TOKEN_VARIABLE = "VLA_RL_TOKEN"


class RemoteError(UserError):
    """The server cannot be reached, or refuses."""


class Client:
    """A connection that is made anew when it breaks; a subclass takes the server's greeting and asks its questions.

    Args:
        address: ``ws://host:port`` or ``wss://host:port``.
        token_file: file with the server's token; None = the environment variable ``VLA_RL_TOKEN``.
        timeout: seconds that one answer may take.
        patience: seconds in which a server that has gone may come back; the caller waits meanwhile.
        authority: PEM file with the certificate to trust under ``wss``; None = the system's.

    Raises:
        UserError: no token, no server, a wrong token or another protocol.
    """

    serves = "policy"
    """What the server has, for messages."""

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
        """Note what the server says of itself."""
        raise NotImplementedError

    def _same(self) -> Any:
        """What must not change when the server comes back."""
        raise NotImplementedError

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
                        f"the {self.serves} server {self.address} does not answer{late} ({type(error).__name__}: {error}): "
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
        before = self._same()
        self._take(self._exchange({"method": "hello", "protocol": VERSION}))
        if self._same() != before:
            raise RemoteError(
                f"{self.address} has come back with another {self.serves}: start again, or serve the old one"
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
            raise RemoteError(f"{self.address} is no {self.serves} server's address: {error}") from error

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
