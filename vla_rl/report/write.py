"""Puts a run's results into ``report.json`` and one HTML page."""

from __future__ import annotations

import base64
import json
from html import escape
from pathlib import Path
from typing import Any

from vla_rl.report.plots import interval_bars, line_plot

JSON_KEYS = (
    "base",
    "final",
    "train_seconds",
    "wall_seconds",
    "env_steps",
    "episodes",
    "peak_rss_mb",
    "seed",
    "versions",
)

STYLE = """
:root{color-scheme:light dark;--ink:#1f2328;--soft:#59636e;--page:#fff;--card:#f6f8fa;--line:#d1d9e0;--a:#0969da;--b:#1a7f37;--c:#9a6700}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--page:#0d1117;--card:#151b23;--line:#3d444d;--a:#4493f8;--b:#3fb950;--c:#d29922}}
body{font:16px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--page);margin:0 auto;padding:2rem 1rem 4rem;max-width:60rem}
h1{font-size:1.7rem;margin:0 0 .2rem}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}p.lead{font-size:1.1rem}
.soft{color:var(--soft)}.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.7rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.7rem .9rem}.card b{display:block;font-size:1.25rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid var(--line)}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(18rem,1fr));gap:1rem}video{width:100%;border-radius:8px}
svg{width:100%;height:auto;background:var(--card);border:1px solid var(--line);border-radius:8px}
svg text{fill:var(--soft);font-size:11px}svg .grid{stroke:var(--line)}svg polyline{fill:none;stroke-width:2}
svg .s0{stroke:var(--a)}svg .s1{stroke:var(--b)}svg .s2{stroke:var(--c)}svg .b0{fill:var(--c);opacity:.75}svg .b1{fill:var(--b);opacity:.8}
svg .bar{stroke:var(--ink);stroke-width:2}svg circle{fill:var(--b);stroke:var(--page)}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.8rem;overflow:auto;font-size:13px}
"""


def write_report(run: Path, data: dict[str, Any]) -> Path:
    """Write both files into the run folder; returns the HTML's path.

    Args:
        run: run folder.
        data: ``base`` and ``final`` success (see ``vla_rl.stats.summary``; either may be None), the keys of
            report.json, and ``title``, ``curve``, ``evaluations``, ``metrics``, ``config``, ``videos``.
    """
    _atomic(run / "report.json", json.dumps({key: data.get(key) for key in JSON_KEYS}, indent=2) + "\n")
    page = run / "report.html"
    _atomic(page, _page(data))
    return page


def _atomic(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _page(data: dict[str, Any]) -> str:
    title = escape(f"{data['title']} - vla_rl report")
    parts = [
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
        f"<meta name='viewport' content='width=device-width,initial-scale=1'><style>{STYLE}</style></head><body><main>",
        f"<h1>{escape(str(data['title']))}</h1>{_lead(data)}",
        _success(data),
        _videos(data.get("videos") or {}),
        _curves(data),
        _cards(data),
        f"<h2>Configuration</h2><pre>{escape(data.get('config', ''))}</pre>",
        _table("Versions", ["package", "version"], [[k, str(v)] for k, v in (data.get("versions") or {}).items()]),
        "</main></body></html>",
    ]
    return "".join(parts)


def _percent(part: dict[str, Any]) -> str:
    low, high = part["wilson95"]
    return f"{100 * part['rate']:.1f} % ({part['successes']}/{part['episodes']}, 95 % interval {100 * low:.0f}-{100 * high:.0f} %)"


def _lead(data: dict[str, Any]) -> str:
    base, final = data.get("base"), data.get("final")
    if base and final:
        return f"<p class='lead'>Success went from <b>{_percent(base)}</b> to <b>{_percent(final)}</b>.</p>"
    one = final or base
    return f"<p class='lead'>Success <b>{_percent(one)}</b>.</p>" if one else ""


def _success(data: dict[str, Any]) -> str:
    both = [(name, data[key]) for name, key in (("before", "base"), ("after", "final")) if data.get(key)]
    if not both:
        return ""
    bars = interval_bars([(name, s["rate"], *s["wilson95"]) for name, s in both])
    tasks = sorted({task for _, s in both for task in s.get("per_task", {})})
    rows = [[task, *(_percent(s["per_task"][task]) if task in s["per_task"] else "-" for _, s in both)] for task in tasks]
    return f"<h2>Success before and after</h2>{bars}" + _table("Per task", ["task", *(n for n, _ in both)], rows)


def _table(title: str, head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    header = "".join(f"<th scope='col'>{escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<h2>{escape(title)}</h2><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"


def _videos(videos: dict[str, Path]) -> str:
    parts = []
    for name, path in videos.items():
        content = base64.b64encode(Path(path).read_bytes()).decode()
        parts.append(
            f"<figure><figcaption class='soft'>{escape(name)} (green frame: success, red: failure)</figcaption>"
            f"<video controls loop muted autoplay aria-label='rollouts {escape(name)} training'>"
            f"<source type='video/mp4' src='data:video/mp4;base64,{content}'></video></figure>"
        )
    return f"<h2>What it does</h2><div class='two'>{''.join(parts)}</div>" if parts else ""


def _curves(data: dict[str, Any]) -> str:
    curve = [(row["step"], row["success"]) for row in data.get("curve", [])]
    marks = [(e["step"], e["rate"], *e["wilson95"]) for e in data.get("evaluations", [])]
    if data.get("base"):
        marks.insert(0, (0, data["base"]["rate"], *data["base"]["wilson95"]))
    if data.get("final"):
        marks.append((data.get("env_steps") or 0, data["final"]["rate"], *data["final"]["wilson95"]))
    parts = [
        "<h2>Learning</h2><p class='soft'>Line: success of the last 100 training episodes (with exploration). "
        "Dots: evaluation without exploration, 95 % Wilson intervals.</p>",
        line_plot("Success against environment steps", "environment steps", {"training": curve}, y_range=(0, 1), points=marks, percent=True),
    ]
    minutes = [(row["seconds"] / 60, row["success"]) for row in data.get("curve", []) if "seconds" in row]
    plots = [line_plot("Success against time", "minutes of training", {"training": minutes}, y_range=(0, 1), percent=True)]
    for key, title in (("q", "Mean value of the critic"), ("critic_loss", "Critic loss"), ("residual", "Mean size of the correction (share of its bound)")):
        line = [(row["step"], row[key]) for row in data.get("metrics", []) if key in row]
        if line:
            plots.append(f"<figure><figcaption>{title}</figcaption>{line_plot(title, 'environment steps', {key: line})}</figure>")
    return "".join(parts) + "<div class='two'>" + "".join(plots) + "</div>"


def _cards(data: dict[str, Any]) -> str:
    minutes = lambda s: f"{s / 60:.1f} min"  # noqa: E731
    cards = [
        ("training", minutes(data.get("train_seconds") or 0)),
        ("in all", minutes(data.get("wall_seconds") or 0)),
        ("environment steps", f"{data.get('env_steps') or 0:,}"),
        ("episodes", f"{data.get('episodes') or 0:,}"),
        ("peak memory", f"{(data.get('peak_rss_mb') or 0) / 1024:.1f} GiB"),
        ("seed", str(data.get("seed"))),
    ]
    return "<h2>Cost</h2><div class='cards'>" + "".join(f"<div class='card'><b>{escape(v)}</b>{escape(k)}</div>" for k, v in cards) + "</div>"
