"""A viser server that nobody reaches without the token: neither its page nor its websocket.

viser asks nobody who they are. Its own HTTP handler is wrapped here, in the same process, so that there is no second,
open port behind a proxy that a local user or a web page in the operator's browser could find.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import io
import os
import secrets
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

from vla_rl.errors import UserError

VARIABLE = "VLA_RL_CONSOLE_TOKEN"
"""Environment variable that may hold the token."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SHORTEST = 16
"""Characters a token has at least."""

HARDENED = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",  # no foreign page lies over the buttons
}

_starting = threading.Lock()


class Guard:
    """Decides on each HTTP request and websocket handshake.

    ``/?token=...`` answers with a cookie (which does not hold the token itself) and the page without the token in its
    address; everything else needs that cookie. A websocket must also come from the page itself (``Origin``): a cookie is
    sent to every port of a host.

    Args:
        token: at least ``SHORTEST`` characters.

    Raises:
        UserError: a shorter one.
    """

    def __init__(self, token: str) -> None:
        if len(token) < SHORTEST:
            raise UserError(
                f"console token has {len(token)} characters, needs {SHORTEST}: leave it unset to get one"
            )
        self._token = token.encode()
        self.cookie = f"vla_rl_console_{self._derived('name')[:8]}"
        self._value = self._derived("cookie").encode()

    def _derived(self, purpose: str) -> str:
        return hmac.new(self._token, purpose.encode(), hashlib.sha256).hexdigest()

    def check(self, request: Any) -> tuple[HTTPStatus, dict[str, str]] | None:
        """None lets a ``websockets`` request through; else status and headers of the answer."""
        headers = request.headers
        given = parse_qs(urlsplit(request.path).query).get("token", [])
        websocket = any("websocket" in v.lower() for v in headers.get_all("Upgrade"))
        if given and not websocket:
            if not hmac.compare_digest(given[0].encode(errors="surrogateescape"), self._token):
                return HTTPStatus.UNAUTHORIZED, {}
            # Lax, not Strict: a link in a message would otherwise lose its cookie on the way to the page.
            cookie = f"{self.cookie}={self._value.decode()}; Path=/; HttpOnly; SameSite=Lax"
            return HTTPStatus.SEE_OTHER, {"Location": "/", "Set-Cookie": cookie}
        pairs = [p.strip().partition("=") for line in headers.get_all("Cookie") for p in line.split(";")]
        cookies = [value.encode(errors="surrogateescape") for name, _, value in pairs if name == self.cookie]
        if not any([hmac.compare_digest(value, self._value) for value in cookies]):
            return HTTPStatus.UNAUTHORIZED, {}
        origins, hosts = headers.get_all("Origin"), headers.get_all("Host")
        if websocket and any([urlsplit(origin).netloc] != hosts for origin in origins):
            return HTTPStatus.FORBIDDEN, {}
        return None

    def around(self, inner: Callable[[Any, Any], Any] | None) -> Callable[[Any, Any], Any]:
        """A ``process_request`` of ``websockets`` that asks this guard before ``inner``."""
        from websockets import Headers
        from websockets.http11 import Response

        def process(connection: Any, request: Any) -> Any:
            refused = self.check(request)
            if refused is not None:
                status, extra = refused
                text = b"" if extra else b"Open the address that the console printed: it carries the token.\n"
                headers = {
                    "Content-Type": "text/plain",
                    "Content-Length": str(len(text)),
                    **HARDENED,
                    **extra,
                }
                return Response(status.value, status.phrase, Headers(headers), text)
            response = inner(connection, request) if inner is not None else None
            if response is not None:
                response.headers.update(HARDENED)
            return response

        return process


def choose_token(token: str | None) -> tuple[str, bool]:
    """The token of the configuration, of the environment or a new one; and whether it is new."""
    given = token or os.environ.get(VARIABLE, "")
    return (given, False) if given else (secrets.token_urlsafe(24), True)


def serve_guarded(guard: Guard, host: str, port: int) -> Any:
    """A running ``viser.ViserServer`` behind the guard; ``port`` 0 = any that is free.

    Raises:
        UserError: the address cannot be had.
        RuntimeError: it answers without a token (a viser that this code does not know); it is stopped then.
    """
    import viser
    import websockets.asyncio.server as module

    try:  # viser itself would silently take the next port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"the console cannot listen on host={host} port={port} ({error}): choose another"
        ) from error
    plain = module.serve

    def serve(handler: Any, *args: Any, process_request: Any = None, **rest: Any) -> Any:
        if not handler.__module__.startswith("viser."):
            return plain(handler, *args, process_request=process_request, **rest)
        return plain(handler, *args, process_request=guard.around(process_request), **rest)

    with _starting:
        module.serve = serve  # type: ignore[misc, assignment]
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # its banner names an address that answers 401
                server = viser.ViserServer(host=host, port=port, verbose=False)
        finally:
            module.serve = plain  # type: ignore[misc]
    try:
        _prove(host, server.get_port())
    except BaseException:
        server.stop()
        raise
    return server


def _prove(host: str, port: int) -> None:
    """Ask as a stranger, once: a new viser may start its server in another way."""
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    asked = http.client.HTTPConnection(near, port, timeout=5.0)
    try:
        asked.request("GET", "/")
        status = asked.getresponse().status
    finally:
        asked.close()
    if status != HTTPStatus.UNAUTHORIZED:
        raise RuntimeError(f"viser answered a request without the token ({status}): the console stays shut")


def address(host: str, port: int) -> str:
    """URL under which a browser finds the server."""
    if host in ("0.0.0.0", "::"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))  # sends nothing: asks which of our addresses looks outward
                host = probe.getsockname()[0]
            except OSError:
                host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def announce(host: str, port: int, token: str, fresh: bool) -> None:
    """Say once where the console is; a token that the user chose is not repeated."""
    shown = token if fresh else "<your token>"
    print(f"console: {address(host, port)}/?token={shown}", flush=True)
    if host not in LOOPBACK:
        print(
            f"warning: host={host} shows the console to the network, unencrypted; whoever has the token moves the arm",
            flush=True,
        )
