"""A policy behind a websocket: bearer token, size limits, a schema for every message, deadlines everywhere.

Requests are maps with ``id`` and ``method``; the answer has the same ``id`` and either the result or ``error``. The server
keeps nothing of an episode: the policy's state travels with each request, so rows may be reset, and clients and the server
may be restarted, at any moment. Another served thing (``vla_rl.serving.critic``) has methods of its own.
"""

from __future__ import annotations

import hmac
import logging
import ssl
import threading
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

import vla_rl
from vla_rl.errors import UserError
from vla_rl.policies.base import Policy
from vla_rl.policies.capabilities import Denoising, FromNoise
from vla_rl.serving.batcher import Batcher
from vla_rl.serving.protocol import MAX_BYTES, VERSION, ProtocolError, pack, pack_state, unpack
from vla_rl.serving.schema import ActRequest, act_request

log = logging.getLogger("vla_rl.serving")

LOOPBACK = ("127.0.0.1", "::1", "localhost")
IDLE = 600.0
"""Seconds after which a client that asks nothing is sent away."""

ANSWER = 120.0
"""Seconds that one request may take."""

CLIENTS = 32
"""Connections at a time."""


class Service:
    """Answers messages by the ``methods`` of a subclass; knows no network."""

    methods: dict[str, Callable[[dict[str, Any]], dict[str, Any]]]

    def answer(self, raw: Any) -> bytes:
        """The reply to any bytes whatever; a message that is refused gets the reason."""
        number = 0
        try:
            message = unpack(raw)
            number = message.pop("id", None)
            method = message.pop("method", None)
            if type(number) is not int or not 0 <= number < 2**53:
                number = 0
                raise ProtocolError("id must be a number")
            if not isinstance(method, str) or method not in self.methods:
                raise ProtocolError(f"method must be one of {', '.join(self.methods)}")
            return pack({"id": number} | self.methods[method](message))
        except ProtocolError as error:
            return pack({"id": number, "error": str(error), "kind": "protocol"})
        except UserError as error:
            return pack({"id": number, "error": str(error), "kind": "policy"})
        except Exception as error:
            log.exception("a request failed")
            return pack({"id": number, "error": f"{type(error).__name__}: {error}"[:500], "kind": "server"})

    def close(self) -> None:
        """Nothing to end."""


def greeted(message: dict[str, Any]) -> dict[str, Any]:
    """The beginning of the answer to ``hello``.

    Raises:
        ProtocolError: another protocol.
    """
    if set(message) != {"protocol"} or type(message["protocol"]) is not int:
        raise ProtocolError("hello has the client's protocol number")
    if message["protocol"] != VERSION:
        raise ProtocolError(
            f"the client speaks protocol {message['protocol']}, the server {VERSION} (vla_rl {vla_rl.__version__}): "
            "install the same vla_rl on both"
        )
    return {"protocol": VERSION, "version": vla_rl.__version__}


class PolicyService(Service):
    """Answers messages about one policy.

    Args:
        policy: what is served; ``act`` is called from one thread only.
        window: seconds in which requests are joined to one forward pass.
        rows: of one forward pass at most.
    """

    def __init__(self, policy: Policy, *, window: float = 0.003, rows: int = 64) -> None:
        self.policy, self.like = policy, policy.initial_state(1)
        self.noise_shape, self.steered = _noise(policy)
        self.batcher = Batcher(self._serve, window=window, rows=rows)
        self.methods: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "hello": self._hello,
            "act": self._act,
            "needs_images": self._needs_images,
        }

    def _hello(self, message: dict[str, Any]) -> dict[str, Any]:
        spec = self.policy.spec
        return greeted(message) | {
            "spec": {
                "action_dim": spec.action_dim,
                "chunk_length": spec.chunk_length,
                "state_keys": list(spec.state_keys),
                "image_keys": list(spec.image_keys),
                "language": spec.language,
                "rate_hz": spec.rate_hz,
            },
            "noise_shape": list(self.noise_shape) if self.noise_shape else None,
            "looks": self._looks(),
            "state": pack_state(self.like),
        }

    def _looks(self) -> str:
        """``never``, ``always``, or ``ask`` where it depends on the state."""
        if not self.policy.spec.image_keys:
            return "never"
        return "ask" if hasattr(self.policy, "horizon") else "always"

    def _needs_images(self, message: dict[str, Any]) -> dict[str, Any]:
        from vla_rl.serving.protocol import unpack_state

        if set(message) != {"state"}:
            raise ProtocolError("needs_images has a state")
        return {"rows": self.policy.needs_images(unpack_state(message["state"], self.like))}

    def _act(self, message: dict[str, Any]) -> dict[str, Any]:
        request = act_request(message, self.policy.spec, self.like, self.noise_shape)
        output, state = self.batcher.ask(request, ANSWER)
        return {"action": output["action"], "state": pack_state(state)}

    def _serve(self, request: ActRequest) -> tuple[TensorDict, TensorDict]:
        with torch.no_grad():
            if request.noise is None:
                output, state = self.policy.act(
                    request.observation, request.state, deterministic=request.deterministic
                )
            else:
                output, state = self.steered(request.observation, request.state, request.noise)
        return output.select("action"), state

    def close(self) -> None:
        """End the policy's thread."""
        self.batcher.close()


def _noise(policy: Any) -> tuple[tuple[int, int] | None, Any]:
    """Shape of the initial noise and how to act from it, where the policy's chunk is a function of it."""
    from vla_rl.policies.noise_steered import act_from, noise_shape

    if isinstance(policy, FromNoise) and policy.noise_shape is not None:
        return policy.noise_shape, policy.act_from_noise
    if not isinstance(policy, Denoising):
        return None, None
    base: Any = policy
    try:
        return noise_shape(base), lambda seen, state, noise: act_from(base, seen, state, noise)
    except UserError:
        return None, None


class PolicyServer:
    """The service on a port; a thread per client.

    Args:
        service: what answers.
        token: that clients must send (``Authorization: Bearer ...``).
        host: address to listen on.
        port: 0 = any free one (``port`` says which).
        certificate: PEM file with certificate and key for TLS, or None.

    Raises:
        UserError: the port is taken, or the certificate cannot be read.
    """

    def __init__(
        self,
        service: Service,
        token: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        certificate: Path | None = None,
    ) -> None:
        self.service, self._token = service, token.encode()
        self._slots = threading.Semaphore(CLIENTS)
        context = None
        try:
            if certificate is not None:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(certificate)
            self._server: Server = serve(
                self._client,
                host,
                port,
                ssl=context,
                process_request=self._admit,
                max_size=MAX_BYTES,
                open_timeout=10,
                close_timeout=5,
                compression=None,
            )
        except OSError as error:
            what = certificate if isinstance(error, ssl.SSLError | FileNotFoundError) else f"{host}:{port}"
            raise UserError(f"cannot serve on {what}: {error.strerror or error}; choose another") from error
        self.port = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def close(self) -> None:
        """Send all clients away."""
        self._server.shutdown()
        self.service.close()

    def _admit(self, connection: ServerConnection, request: Any) -> Any:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ").encode()
        if not hmac.compare_digest(given, self._token):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "wrong or missing token\n")
        return None

    def _client(self, connection: ServerConnection) -> None:
        if not self._slots.acquire(blocking=False):
            connection.close(1013, "too many clients")
            return
        try:
            while True:
                connection.send(self.service.answer(connection.recv(timeout=IDLE)))
        except TimeoutError:
            connection.close(1001, "idle")
        except ConnectionClosed:
            pass
        finally:
            self._slots.release()
