"""The operator console: the robot in a browser, beside whoever drives it (``vla-rl robot console``).

``teleop=console`` (``real.teleop.console``) is the same with a handle to drive. Everything here runs in threads of its
own, with bounded work; what fails in them is printed once and ends no episode.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from real.console_guard import Guard, announce, choose_token, serve_guarded
from real.console_panel import CURVE_RATE, Panel
from real.console_scene import ArmScene
from real.console_streams import Streams, watch
from real.contract import load_contract
from real.ros2 import Link
from vla_rl.config import compose

POSE, PICTURES, STATUS = 0.05, 0.1, 0.2
"""Seconds between two updates of the arm, the pictures, and the rest."""

AGAIN = 2.0
"""Seconds of rest after a failure."""


class Console:
    """A browser's view of a robot; without a browser it does nothing.

    Args:
        streams: of the robot.
        host: address to listen on; only this machine unless it is set.
        port: 0 = any that is free.
        token: None = ``$VLA_RL_CONSOLE_TOKEN``, or a new one, printed.

    Raises:
        UserError: the address is taken, or the token is short.
    """

    def __init__(
        self, streams: Streams, host: str = "127.0.0.1", port: int = 8090, token: str | None = None
    ) -> None:
        secret, fresh = choose_token(token)
        self.server = serve_guarded(Guard(secret), host, port)
        self.streams, self.port, self.token = streams, self.server.get_port(), secret
        self.also: list[Callable[[], None]] = []
        """Called with each update of the arm."""
        self._ended, self._failed = threading.Event(), ""
        try:
            self.scene = ArmScene(self.server, streams.contract)
            self.panel = Panel(self.server, streams)
        except BaseException:
            self.server.stop()
            raise
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)
        self._thread.start()
        announce(host, self.port, secret, fresh)

    def _run(self) -> None:
        curves = self.panel.curves
        jobs = [(PICTURES, self.panel.update_pictures), (STATUS, self.panel.update)]
        jobs += [(1 / CURVE_RATE, curves.sample), (1.0, curves.draw)]
        due = [0.0] * len(jobs)
        while not self._ended.wait(POSE):
            watched, now = bool(self.server.get_clients()), time.monotonic()
            try:
                for call in self.also:
                    call()
                for number, (period, job) in enumerate(jobs):
                    if now >= due[number] and (watched or job == curves.sample):
                        due[number] = now + period
                        job()
                if watched:
                    self._draw()
            except Exception as error:
                self._report(error)
                self._ended.wait(AGAIN)
        self.server.stop()

    def _draw(self) -> None:
        self.scene.update(self.streams.positions())
        for name, stream in self.streams.objects.items():
            if stream.newest is not None:
                point = stream.newest.message.pose.position
                self.scene.place(name, np.array([point.x, point.y, point.z]))

    def _report(self, error: Exception) -> None:
        if repr(error) != self._failed:  # once, not twenty times a second
            self._failed = repr(error)
            print("console:", "".join(traceback.format_exception(error)), file=sys.stderr, flush=True)

    def ping(self, client: int, answered: Callable[[int], None]) -> None:
        """Ask a browser whether it is there; ``answered(client)`` is called when it says so."""
        server = self.server._websock_server
        connection, loop = server._live_connections.get(client), server._background_event_loop

        async def ask() -> None:
            await (await connection.ping())
            answered(client)

        if connection is not None:
            asyncio.run_coroutine_threadsafe(_quiet(ask()), loop)

    def end(self) -> None:
        """Let its thread end it."""
        self._ended.set()

    def close(self) -> None:
        """End it now; safe to call twice."""
        self._ended.set()
        self._thread.join(5.0)


async def _quiet(asked: Any) -> None:
    from websockets.exceptions import ConnectionClosed

    try:
        await asked
    except ConnectionClosed:
        pass  # silence is the answer


def run(overrides: list[str]) -> int:
    """Watch a robot that another process drives, until interrupted."""
    config = compose("robot_console", overrides)
    contract = load_contract(config.env.robot)
    link = Link("vla_rl_console")
    console = None
    try:
        console = Console(watch(contract, link), config.host, config.port, config.token)
        console.panel.watching()
        print("Ctrl-C ends it; the arm goes on with whoever drives it", flush=True)
        threading.Event().wait(config.seconds)
    except KeyboardInterrupt:
        pass
    finally:
        if console is not None:
            console.close()
        link.close()
    return 0
