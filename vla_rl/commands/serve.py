"""vla-rl serve: a policy behind a websocket, for clients that have no GPU, or another Python.

usage: vla-rl serve policy.path=DIR [host=127.0.0.1] [port=8765] [token_file=FILE] [key=value ...]

  policy.path=DIR                    any LeRobot policy folder or hub id; policy.device=cuda where it has a GPU
  critic=DIR                         a critic instead (vla-rl critic train); its client is reward=vlac reward.address=ws://HOST:8765
  token_file=runs/serve.token        the token clients must show; made if missing. Or the variable VLA_RL_TOKEN
  host=0.0.0.0 certificate=FILE      for other machines; without a certificate anybody on the way reads and changes it
  window_ms=3 rows=64                clients that ask within 3 ms share one forward pass of at most 64 rows

A client is any command with policy=remote:

  vla-rl eval policy=remote policy.address=ws://HOST:8765 policy.token_file=FILE env=table

Examples:
  vla-rl serve policy.path=assets/smolvla-nano
"""

from __future__ import annotations

import time
from typing import Any

from vla_rl.config import compose
from vla_rl.errors import UserError


def run(overrides: list[str]) -> int:
    """Serve until told to stop."""
    from pathlib import Path

    from vla_rl.policies.load import load_base
    from vla_rl.runtime.threads import set_threads
    from vla_rl.serving.server import LOOPBACK, PolicyServer, PolicyService

    config = compose("serve", overrides)
    if not 0 <= config.port < 65536:
        raise UserError(f"port={config.port}: 0 to 65535")
    set_threads(config.threads)
    if config.policy.get("address"):
        raise UserError("policy=remote is served already: name a folder (policy.path)")
    if config.critic:
        from vla_rl.critic.model import Critic
        from vla_rl.serving.critic import CriticService

        service: Any = CriticService(Critic.load(config.critic, config.policy.get("device") or "cpu"))
    else:
        policy: Any = load_base(config.policy)
        service = PolicyService(policy.base, window=config.window_ms / 1e3, rows=config.rows)
    token, where = token_of(config.token_file)
    certificate = Path(config.certificate) if config.certificate else None
    server = PolicyServer(service, token, host=config.host, port=config.port, certificate=certificate)
    if config.host not in LOOPBACK and certificate is None:
        print("warning: no certificate: anybody on the way reads the pictures and may change the actions")
    server.start()
    scheme = "wss" if certificate else "ws"
    print(
        f"serving {config.critic or config.policy.path} on {scheme}://{config.host}:{server.port}; token: {where}",
        flush=True,
    )
    until = None if config.seconds is None else time.monotonic() + config.seconds
    try:
        while until is None or time.monotonic() < until:
            time.sleep(0.2)
    except KeyboardInterrupt:
        print("stopping")
    finally:
        server.close()
    if config.critic:
        print(f"answered {service.requests} questions")
    else:
        print(f"answered {service.batcher.requests} requests in {service.batcher.passes} forward passes")
    return 0


def token_of(file: str | None) -> tuple[str, str]:
    """The token, and where clients find it; a new one is written for its owner's eyes alone.

    Raises:
        UserError: no place for one, or an empty one.
    """
    import os
    import secrets
    from pathlib import Path

    from vla_rl.policies.remote import TOKEN_VARIABLE, read_token

    if os.environ.get(TOKEN_VARIABLE):
        return read_token(None), f"in {TOKEN_VARIABLE}"
    if not file:
        raise UserError(f"token_file is not set: name a file, or set {TOKEN_VARIABLE}")
    path = Path(file).expanduser()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as opened:
            opened.write(secrets.token_urlsafe(32) + "\n")
    token = read_token(path)
    if not token:
        raise UserError(f"token_file={file} is empty: remove it")
    return token, str(path)
