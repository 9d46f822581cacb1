"""What an operator reads and presses: safety first, then the pictures, the streams and the curves."""

from __future__ import annotations

import contextlib
import html
import time
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np

from real.console_streams import Streams
from real.robot_env import picture_of
from vla_rl.errors import UserError

COLORS = {"run": "#2f9e44", "hold": "#e8890c", "stopped": "#e03131", "": "#868e96"}
WORDS = {
    "run": "RUNNING",
    "hold": "HOLDING",
    "stopped": "STOPPED",
    "": "NO SAFETY NODE",
}
PALETTE = ("#4dabf7", "#ff922b", "#51cf66", "#f06595", "#fcc419", "#845ef7", "#20c997", "#adb5bd")
NARROWEST, WIDEST = 320, 480
"""Pixels between which pictures are shown."""

SPAN, CURVE_RATE = 60.0, 5.0
"""Seconds that curves show, and their points per second."""

BIG = """<style>
button:has(svg.icon-tabler-hand-stop) {height: 3em !important; font-size: 1.25em; font-weight: 800; letter-spacing: .12em}
</style>"""
"""A STOP that a thumb finds; where a browser ignores it, the button is as wide and less high."""

ANSWER = 0.5
"""Seconds in which the safety node must have stopped; then its service is tried as well."""


class Panel:
    """The GUI that all browsers share.

    Args:
        server: viser's.
        streams: of the robot.
    """

    def __init__(self, server: Any, streams: Streams) -> None:
        import viser

        self.server, self.streams = server, streams
        gui = server.gui
        gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False, control_width="large")
        gui.set_panel_label(f"{streams.contract.name} console")
        self.status = gui.add_html("")
        self.stop = gui.add_button("STOP", color="red", icon=viser.Icon.HAND_STOP)
        self.stop.on_click(lambda event: self._stop(event.client))
        self.reset = gui.add_button(
            "Reset the stop ...", color="gray", icon=viser.Icon.LOCK_OPEN, visible=False
        )
        self.reset.on_click(lambda event: self._confirm(event.client))
        hotkey = gui.add_command("STOP the arm", hotkey="S", icon=viser.Icon.HAND_STOP)
        hotkey.on_trigger(lambda event: self._stop(event.client))
        self.episode = gui.add_folder("This episode", visible=False)
        self.drive = gui.add_folder("Drive", visible=False)
        with gui.add_folder("Streams") as self.health:
            self.ages = gui.add_html("")
        self.views = gui.add_panel()
        self.pictures: dict[str, Any] = {}
        self._cameras = {n: streams.contract.cameras[n] for n in streams.pictures}
        self._shown: dict[str, int] = {}
        with self.views.add_tab("Cameras", viser.Icon.CAMERA):
            for name in streams.pictures:
                blank = np.full((96, 96, 3), 40, np.uint8)
                self.pictures[name] = gui.add_image(blank, label=name, format="jpeg", jpeg_quality=75)
            if not streams.pictures:
                gui.add_markdown("The contract names no camera.")
        self.curves_tab = self.views.add_tab("Curves", viser.Icon.CHART_LINE)
        with self.curves_tab:
            self.curves = Curves(gui, streams)
        self.views.dock_left()
        gui.main_panel.dock_right()
        self._html: dict[str, str] = {}

    def watching(self) -> None:
        """Say that nothing is driven from here."""
        self.server.gui.add_markdown("Watching: another process drives. STOP works from here.")

    # ---- buttons ----------------------------------------------------------------------------------------

    def _stop(self, client: Any) -> None:
        self.streams.stop()
        until = time.monotonic() + ANSWER
        while time.monotonic() < until:
            if self.streams.safety_now()[0] == "stopped":
                return
            time.sleep(0.02)
        try:
            self.streams.stop_by_service()
        except UserError as error:
            notify(client, "STOP was not confirmed", f"{error}. Use the emergency stop.", "red")

    def _confirm(self, client: Any) -> None:
        if client is None:
            return
        mode, reason = self.streams.safety_now()
        if mode != "stopped":
            return
        modal = client.gui.add_modal("Reset the latched stop?")
        with modal:
            client.gui.add_markdown(
                f"Stopped because: **{html.escape(reason or 'unknown')}**\n\n"
                "Nobody is within reach of the arm, and what made it stop is gone. After the reset it may move at once."
            )
            sure = client.gui.add_button("The cell is clear: reset", color="orange")
            leave = client.gui.add_button("Stay stopped", color="gray")
        leave.on_click(lambda _: modal.close())

        @sure.on_click
        def _(_: Any) -> None:
            modal.close()
            try:
                notify(client, "Reset", self.streams.reset(), "green")
            except UserError as error:
                notify(client, "Not reset", str(error), "red")

    # ---- refreshed by the console's thread --------------------------------------------------------------

    def update(self) -> None:
        """Status and ages; nothing is sent that has not changed."""
        mode, reason = self.streams.safety_now()
        if self.reset.visible != (mode == "stopped"):
            self.reset.visible = mode == "stopped"
        extra = html.escape(reason) if reason else {"run": "inside the limits", "": "start it"}.get(mode, "")
        word = "NOT STARTED" if reason == "not started" else WORDS[mode]
        self._put(
            self.status,
            f'{BIG}<div style="margin:.5em .75em;padding:.6em .8em;border-radius:.5em;color:white;background:{COLORS[mode]}">'
            f'<div style="font-size:1.35em;font-weight:700">{word}</div>'
            f'<div style="overflow-wrap:anywhere">{extra}&nbsp;</div></div>',
        )
        rows = "".join(map(_row, self.streams.ages()))
        self._put(
            self.ages,
            '<div style="padding:0 .8em .4em"><table style="width:100%;border-collapse:collapse;font-size:.85em">'
            f'<tr style="opacity:.6;text-align:left"><th>stream</th><th style="text-align:right">age</th>'
            f'<th style="text-align:right">allowed</th></tr>{rows}</table></div>',
        )

    def _put(self, element: Any, content: str) -> None:
        if self._html.get(element._impl.uuid) != content:
            self._html[element._impl.uuid] = element.content = content

    def update_pictures(self) -> None:
        """The newest picture of each camera that has a new one."""
        for name, stream in self.streams.pictures.items():
            newest, count = stream.newest, stream.count
            if newest is None or self._shown.get(name) == count:
                continue
            if name not in self._shown:
                self._cameras[name] = sized(newest.message, self._cameras[name])
            self._shown[name] = count
            with contextlib.suppress(UserError):  # one broken picture
                picture = picture_of(newest.message, self._cameras[name])
                self.pictures[name].image = picture.transpose(1, 2, 0)


class Curves:
    """The last minute, drawn once a second."""

    def __init__(self, gui: Any, streams: Streams) -> None:
        self.gui, self.streams = gui, streams
        self.plots: list[tuple[Any, deque, Any]] = []
        joints = streams.contract.joints
        self.add("joints (rad)", joints, self._joints, 230)
        self.add("safety loop late, 99 % (ms)", ["ms"], lambda: [streams.reported("late_p99_ms")])

    def _joints(self) -> list[float]:
        where = self.streams.positions()
        return [where.get(name, np.nan) for name in self.streams.contract.joints]

    def add(self, title: str, names: list[str], read: Any, height: int = 150) -> None:
        """Another plot: ``read()`` gives one number for each name."""
        kept: deque = deque(maxlen=int(SPAN * CURVE_RATE))
        series = [{"label": "s"}]
        series += [
            {"label": n, "stroke": PALETTE[i % len(PALETTE)], "width": 1.5} for i, n in enumerate(names)
        ]
        ticks = {"stroke": "#adb5bd", "grid": {"stroke": "#8884", "width": 1}}
        plot = self.gui.add_uplot(
            tuple(np.zeros(2) for _ in series),
            tuple(series),
            title=title,
            height=height,
            scales={"x": {"time": False, "range": (-SPAN, 0.0)}},
            axes=(ticks, ticks),
            legend={"show": False},
        )
        self.plots.append((plot, kept, read))

    def sample(self) -> None:
        """Take a point of each."""
        now = time.monotonic()
        for _, kept, read in self.plots:
            kept.append((now, *read()))

    def draw(self) -> None:
        """Send what has been taken."""
        now = time.monotonic()
        for plot, kept, _ in self.plots:
            points = [
                point for point in kept if np.isfinite(point).all()
            ]  # a curve begins with its first number
            if len(points) > 1:
                table = np.array(points, np.float64)
                table[:, 0] -= now
                plot.data = tuple(np.ascontiguousarray(column) for column in table.T)


def _row(stream: tuple[str, float, float]) -> str:
    name, age, limit = stream
    good = 0 <= age <= limit
    shown = "never heard" if age == float("inf") else f"{1e3 * age:.0f} ms" if age < 10 else f"{age:.0f} s"
    dot = COLORS["run"] if good else COLORS["stopped"]
    style = "" if good else "color:#ff8787;font-weight:600"
    return (
        f'<tr style="{style}"><td><span style="color:{dot}">&#9679;</span> {html.escape(name)}</td>'
        f'<td style="text-align:right">{shown}</td><td style="text-align:right;opacity:.6">{1e3 * limit:.0f} ms</td></tr>'
    )


def sized(message: Any, camera: Any) -> Any:
    """The camera with the size its pictures really have, within what is shown: people see more than policies."""
    if camera.kind == "compressed":
        import cv2

        picture = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
        if picture is None:
            return camera
        height, width = picture.shape[:2]
    else:
        height, width = message.height, message.width
    scale = min(max(width, NARROWEST), WIDEST) / width
    return replace(camera, height=round(scale * height), width=round(scale * width))


def notify(client: Any, title: str, body: str, color: str) -> None:
    """Tell one browser, if it is still there."""
    if client is not None:
        client.add_notification(title, body, auto_close_seconds=8.0, color=color)
