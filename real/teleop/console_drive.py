"""The part of a console's panel that drives: take over, buttons to hold, how the episode went, its curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from real.console_panel import notify

if TYPE_CHECKING:
    from real.teleop.console import Console

SHOWN = {
    "free": ("#1971c2", "The policy drives", "Take over to move the arm by hand."),
    "held": (
        "#9c36b5",
        "You drive",
        "Pull the handle at the tool, or hold a button. Let go and the arm rests.",
    ),
    "lost": (
        "#e03131",
        "The driver's browser is gone",
        "The arm keeps still. Take over again, or hand back.",
    ),
}
RECENT = 20
"""Episodes over which rates are taken."""


class DrivePanel:
    """Adds the driver's controls to a console's panel.

    Args:
        console: the teleoperator.
    """

    def __init__(self, console: Console) -> None:
        import viser

        self.console, self.shown = console, ""
        view, env = console.view, console.env
        gui, icon = view.server.gui, viser.Icon
        view.panel.drive.visible = view.panel.episode.visible = True
        with view.panel.drive:
            self.state = gui.add_html("")
            self.take = gui.add_button("Take over", color="grape", icon=icon.HAND_GRAB)
            self.back = gui.add_button("Hand back", color="blue", icon=icon.ROBOT, visible=False)
            self.take.on_click(lambda event: self._take(event.client))
            self.back.on_click(lambda event: self._back(event.client))
            self.speed = gui.add_slider("speed", min=0.05, max=1.0, step=0.05, initial_value=console.speed)
            self.speed.on_update(lambda _: setattr(console, "speed", float(self.speed.value)))
            if env.contract.gripper is not None:
                grip = gui.add_button_group("gripper", ("open", "shut"))
                grip.on_click(
                    lambda event: console.squeeze(event.client_id, 1.0 if grip.value == "open" else -1.0)
                )
            with gui.add_folder("Hold to move", expand_by_default=False):
                names = env.env_spec.action_names
                for index in range(env.env_spec.action_dim - (env.contract.gripper is not None)):
                    name = names[index].removeprefix("d")
                    for sign in (1, -1):
                        self._jog(gui, f"{'+' if sign > 0 else '−'} {name}", index, sign)
        with view.panel.episode:
            self.episode = gui.add_html("")
            for outcome, color, shape in (
                ("success", "green", icon.CHECK),
                ("failure", "orange", icon.X),
                ("discard", "gray", icon.TRASH),
                ("rewind", "gray", icon.PLAYER_SKIP_BACK),
            ):
                button = gui.add_button(outcome.capitalize(), color=color, icon=shape)
                button.on_click(lambda _, outcome=outcome: console.say(outcome))
        curves = view.panel.curves
        with view.panel.curves_tab:
            curves.add("control step late (ms)", ["ms"], self._late)
            curves.add(f"last {RECENT} episodes: success, taken over", ["success", "taken over"], self._rates)

    def _jog(self, gui: Any, label: str, index: int, sign: int) -> None:
        button = gui.add_button(label, color="gray")
        button.on_hold(lambda event: self.console.press(event.client_id, index, sign), callback_hz=10.0)

    def _take(self, client: Any) -> None:
        if client is not None and not self.console.take(client):
            notify(client, "Not taken over", "Another browser has the arm.", "orange")

    def _back(self, client: Any) -> None:
        if client is not None and not self.console.hand_back(client):
            notify(client, "Not handed back", "Another browser has the arm.", "orange")

    def _late(self) -> list[float]:
        late = self.console.env.lateness
        return [1e3 * late[-1] if late else np.nan]

    def _rates(self) -> list[float]:
        recent = [self.console.env.results[-RECENT:], self.console.shares[-RECENT:]]
        return [float(np.mean(values)) if values else np.nan for values in recent]

    def update(self, state: str) -> None:
        """Show who drives and which step it is; only changes are sent."""
        env, console = self.console.env, self.console
        results = env.results
        done = f"{sum(results)} of {len(results)} succeeded" if results else "none has finished yet"
        line = f'<div style="padding:0 .8em;opacity:.85">step {env.steps} of {env.env_spec.max_episode_steps} &middot; {done}</div>'
        if line != self.episode.content:
            self.episode.content = line
        if state == self.shown:
            return
        self.shown = state
        color, title, text = SHOWN[state]
        self.state.content = (
            f'<div style="margin:.2em .75em;padding:.4em .7em;border-left:.35em solid {color};background:#8882">'
            f"<b>{title}</b><br>{text}</div>"
        )
        self.take.visible, self.back.visible = state != "held", state != "free"
        self.take.label = "Take over again" if state == "lost" else "Take over"
        console.view.server.flush()
