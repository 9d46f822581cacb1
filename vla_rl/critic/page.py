"""One HTML page: value curves beside their videos."""

from __future__ import annotations

import base64
import tempfile
from collections import Counter
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from vla_rl.critic.evaluate import Curve
from vla_rl.critic.film import Judged
from vla_rl.report.plots import SMALL, line_plot
from vla_rl.rollout.video import save_mp4
from vla_rl.runtime.metrics import write_text

FPS = 20.0


def write_page(out: Path, summary: dict[str, Any], curves: Sequence[Curve], most: int = 12) -> Path:
    """The page of an evaluation.

    Args:
        out: HTML file.
        summary: of ``vla_rl.critic.evaluate``.
        curves: the first of each task are shown.
        most: episodes on the page.
    """
    each = max(1, most // len({c.trajectory.task for c in curves}))
    seen: Counter[str] = Counter()
    shown: list[Curve] = []
    for curve in curves:
        seen[curve.trajectory.task] += 1
        if seen[curve.trajectory.task] <= each:
            shown.append(curve)
    parts = [_numbers(summary), _reliability(summary), *map(_episode, shown[:most])]
    template = Template(files("vla_rl.report").joinpath("template.html").read_text(encoding="utf-8"))
    lead = "<p class='lead'>Value and chance of done that the critic gives to episodes it was not trained on.</p>"
    write_text(out, template.substitute(title="critic", lead=lead, body="\n".join(parts)))
    return out


def _numbers(summary: dict[str, Any]) -> str:
    rows = [
        f"<tr><th scope='row'>{escape(name.replace('_', ' '))}</th><td>{value:.3f}</td></tr>"
        for name, value in summary.items()
        if isinstance(value, float)
    ]
    return f"<h2>Numbers</h2><div class='scroll'><table>{''.join(rows)}</table></div>"


def _reliability(summary: dict[str, Any]) -> str:
    cells = summary.get("done_reliability") or []
    plot = line_plot(
        "How often it was done, by the chance given",
        "chance given",
        {"true": [(c["chance"], c["true"]) for c in cells], "ideal": [(0.0, 0.0), (1.0, 1.0)]},
        y_range=(0.0, 1.0),
        size=SMALL,
    )
    return f"<h2>Reliability of done</h2><figure>{plot}</figure>" if cells else ""


def _episode(curve: Curve) -> str:
    each = curve.trajectory
    series = {"value": _line(curve.judged), "done": _line(curve.judged, done=True)}
    if curve.shown is not None:
        series["value with a reference"] = _line(curve.shown)
    plot = line_plot("Value", "frame", series, y_range=(0.0, 1.0), size=SMALL)
    with tempfile.TemporaryDirectory() as folder:
        path = save_mp4(list(each.pictures), Path(folder) / "video.mp4", fps=FPS)
        data = base64.b64encode(path.read_bytes()).decode()
    outcome = "succeeded" if each.success else "failed"
    kind = ", task not trained on" if curve.held_out else ""
    legend = ", ".join(series)
    return (
        f"<h3>{escape(each.task)} ({outcome}{kind})</h3><div class='two'><figure>{plot}<figcaption>{legend}</figcaption></figure>"
        f"<figure><video controls loop muted playsinline src='data:video/mp4;base64,{data}'></video></figure></div>"
    )


def _line(judged: Judged, done: bool = False) -> list[tuple[float, float]]:
    values = judged.done if done else judged.value
    return list(zip(judged.moments.tolist(), values.tolist(), strict=True))
