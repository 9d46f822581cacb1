"""Puts a run's results into ``report.json`` and one HTML page."""

from __future__ import annotations

import base64
import json
import logging
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from vla_rl.report.plots import HEIGHT, SMALL, WIDTH, Mark, Point, Span, interval_bars, line_plot
from vla_rl.runtime.metrics import plain, write_text
from vla_rl.runtime.versions import machine

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

BIG_VIDEO = 24 << 20
"""Bytes; a larger video is named, not embedded: browsers give up on such pages."""

SIGNALS = {
    "Value of the critic": {"mean value": "q", "mean target": "target"},
    "Critic loss": {"critic loss": "critic_loss"},
    "Actor loss": {"actor loss": "actor_loss"},
    "Size of the correction (share of its bound)": {"mean correction": "residual"},
    "Variance of the returns that the critic explains": {"explained": "explained"},
    "How far the updates of an iteration moved the policy (KL)": {"approximate KL": "approx_kl"},
    "Entropy of the action words (nats)": {"entropy": "entropy"},
    "Distance from the teacher (KL per word, nats)": {"reverse KL": "reverse_kl"},
    "Distance from the teacher in states not learned from yet (KL per word, nats)": {
        "all tasks": "disagreement"
    },
    "Same likeliest word as the teacher (share)": {"agreement": "agreement"},
    "Distance from the teacher's action": {"distance": "from_teacher"},
    "Forgotten in held-out states (KL per word, nats)": {"forgotten": "forgotten"},
    "Groups of episodes that did not end alike (share)": {"mixed": "mixed_groups"},
    "Interventions (share of steps)": {"taken over": "intervention"},
}
"""Plot -> line -> key in metrics.jsonl."""

log = logging.getLogger("vla_rl.report")


def write_report(run: Path, data: dict[str, Any]) -> Path:
    """Write both files into the run folder, each whole or not at all; returns the HTML's path.

    Args:
        run: run folder.
        data: the keys of report.json (``base`` and ``final`` as ``vla_rl.stats.summary`` gives; either may be
            None), and for the page ``title``, ``curve`` (rows of metrics.jsonl with ``success``), ``evaluations``
            (``step``, ``seconds`` and a summary), ``metrics`` (all rows), ``config`` (YAML), ``videos`` (name ->
            mp4), ``believed`` (name -> png of what a critic took for done, or missed), ``machine``. All but ``title`` may be missing.
    """
    run = Path(run)
    text = render(data)  # before anything is written: an error leaves both files of an earlier report
    report = {key: plain(data.get(key)) for key in JSON_KEYS}
    if data.get("stopped"):
        report["stopped"] = data["stopped"]
    write_text(run / "report.json", json.dumps(report, indent=2) + "\n")
    write_text(run / "report.html", text)
    return run / "report.html"


def render(data: dict[str, Any]) -> str:
    """The HTML page; see ``write_report``."""
    data = {key: value if key in ("videos", "believed") else plain(value) for key, value in data.items()}
    for key in ("base", "final"):
        # A summary that evaluated nothing says nothing.
        data[key] = data.get(key) if (data.get(key) or {}).get("episodes") else None
    parts = [
        _success(data),
        _videos(data.get("videos") or {}),
        _learning(data),
        _believed(data.get("believed") or {}),
        _cost(data),
        _config(data.get("config")),
        _pairs("Machine", data.get("machine") or machine()),
        _pairs("Versions", data.get("versions") or {}),
    ]
    template = Template(files("vla_rl.report").joinpath("template.html").read_text(encoding="utf-8"))
    body = "\n".join(part for part in parts if part)
    return template.substitute(title=escape(str(data.get("title", "run"))), lead=_lead(data), body=body)


def _section(title: str, content: str) -> str:
    name = "".join(c if c.isalnum() else "-" for c in title.lower())
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(title)}</h2>{content}</section>'


def _percent(part: dict[str, Any]) -> str:
    low, high = part["wilson95"]
    return (
        f"{100 * part['rate']:.1f} % ({part['successes']}/{part['episodes']}, "
        f"95 % interval {100 * low:.0f}-{100 * high:.0f} %)"
    )


def _lead(data: dict[str, Any]) -> str:
    base, final = data.get("base"), data.get("final")
    if base and final:
        steps = data.get("env_steps")
        after = f" after {steps:,} environment steps" if steps else ""
        text = f"Success went from <b>{_percent(base)}</b> to <b>{_percent(final)}</b>{after}."
        if not (final["wilson95"][0] > base["wilson95"][1] or final["wilson95"][1] < base["wilson95"][0]):
            text += " The two intervals overlap: this many episodes do not show a difference."
    elif final or base:
        text = f"Success {'after' if final else 'before'} training: <b>{_percent(final or base or {})}</b>."
    else:
        text = "No evaluation was part of this run."
    if data.get("stopped"):
        text += f" Training was stopped: {escape(str(data['stopped']))}."
    return f'<p class="lead">{text}</p>'


def _success(data: dict[str, Any]) -> str:
    both = [(name, data[key]) for name, key in (("before", "base"), ("after", "final")) if data.get(key)]
    if not both:
        return ""
    bars = interval_bars([(name, s["rate"], *s["wilson95"]) for name, s in both], "Success before and after")
    tasks = sorted({task for _, s in both for task in s.get("per_task", {})})
    rows = []
    for task in tasks:
        parts = [s.get("per_task", {}).get(task) for _, s in both]
        rows.append([task, *(_percent(part) if part else "-" for part in parts)])
    note = '<p class="soft">Bars: share of episodes solved on fixed seeds. Lines: 95 % Wilson interval.</p>'
    return _section(
        "Success before and after", bars + note + _table("Per task", ["task", *(n for n, _ in both)], rows)
    )


def _table(caption: str, head: list[str], rows: list[list[str]], *, hidden: bool = False) -> str:
    """A table; ``hidden``: its caption is for screen readers, because a heading says the same."""
    if not rows:
        return ""
    header = "".join(f'<th scope="col">{escape(h)}</th>' for h in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(c)}</td>" for c in row[1:])
        + "</tr>"
        for row in rows
    )
    # A focusable region: a wide table can be scrolled by keyboard.
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f"<caption{' class=hidden' if hidden else ''}>{escape(caption)}</caption>"
        f"<thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _pairs(title: str, values: dict[str, Any]) -> str:
    rows = [[str(k), str(v)] for k, v in values.items()]
    return _section(title, _table(title, ["what", "value"], rows, hidden=True)) if rows else ""


def _videos(videos: dict[str, Path]) -> str:
    parts = []
    for name, path in videos.items():
        path = Path(path)
        if not path.is_file():
            log.warning("%s is not there: the report goes without it", path)
            continue
        caption = f"{escape(name)} (green frame: success, red: failure)"
        if path.stat().st_size > BIG_VIDEO:
            parts.append(
                f"<figure><figcaption>{caption}: see {escape(path.name)} in videos/</figcaption></figure>"
            )
            continue
        content = base64.b64encode(path.read_bytes()).decode()
        parts.append(
            f"<figure><figcaption>{caption}</figcaption>"
            f'<video controls loop muted autoplay playsinline aria-label="Episodes {escape(name)} training">'
            f'<source type="video/mp4" src="data:video/mp4;base64,{content}"></video></figure>'
        )
    return _section("What it does", f'<div class="two">{"".join(parts)}</div>') if parts else ""


def _believed(pictures: dict[str, Path]) -> str:
    parts = []
    for name, path in pictures.items():
        content = base64.b64encode(Path(path).read_bytes()).decode()
        parts.append(
            f"<figure><figcaption>{escape(name.capitalize())}</figcaption>"
            f'<img alt="{escape(name)}" src="data:image/png;base64,{content}"></figure>'
        )
    note = (
        '<p class="soft">The newest episodes that the critic believed in: how each began, and the picture that was taken for '
        "done; and those that it missed: the first picture that it judged once the task was done. If the thing is hidden, choose "
        "another camera.</p>"
    )
    return (
        _section("What the critic took for done, and what it missed", note + "".join(parts)) if parts else ""
    )


def _marks(data: dict[str, Any], scale: str) -> list[Mark]:
    """Evaluations against ``step`` or against minutes of training."""
    found = []
    ends = (("base", 0, 0.0), ("final", data.get("env_steps") or 0, data.get("train_seconds") or 0.0))
    summaries = [data[key] | {"step": step, "seconds": s} for key, step, s in ends if data.get(key)]
    for part in [*summaries, *(data.get("evaluations") or [])]:
        x = part.get("step") if scale == "step" else part.get("seconds")
        if x is not None and part.get("episodes"):
            found.append((x if scale == "step" else x / 60, part["rate"], *part["wilson95"]))
    return sorted(found)


def _line(rows: list[dict[str, Any]], key: str, x: str = "step") -> list[Point]:
    points = [(r.get(x), r.get(key)) for r in rows]
    kept = [(a, b) for a, b in points if isinstance(a, (int, float)) and isinstance(b, (int, float))]
    scale = 60.0 if x == "seconds" else 1.0
    return [(a / scale, float(b)) for a, b in kept]


def _stages(rows: list[dict[str, Any]], x: str = "step") -> list[Span]:
    """When each stage of the run's schedule began and ended, as its rows say."""
    scale, spans = (60.0 if x == "seconds" else 1.0), []
    marked = [(row[x] / scale, row["stage"]) for row in rows if "stage" in row and row.get(x) is not None]
    for at, name in marked:
        if spans and spans[-1][2] == name:
            spans[-1] = (spans[-1][0], at, name)
        else:
            spans = [*spans[:-1], (spans[-1][0], at, spans[-1][2])] if spans else []
            spans.append((at, at, name))
    return [span for span in spans if span[2]]


def _speed(rows: list[dict[str, Any]]) -> list[Point]:
    """(step, environment steps per second since the row before)."""
    timed = [r for r in rows if isinstance(r.get("seconds"), (int, float)) and "evaluation" not in r]
    return [
        (b["step"], (b["step"] - a["step"]) / (b["seconds"] - a["seconds"]))
        for a, b in zip(timed, timed[1:], strict=False)
        if b["seconds"] > a["seconds"] and b["step"] > a["step"]
    ]


def _learning(data: dict[str, Any]) -> str:
    curve, rows = data.get("curve") or [], data.get("metrics") or []
    if not rows and not curve:
        return ""
    main, timed = (
        line_plot(
            f"Success against {label}",
            label,
            {"training": _line(curve, "success", x)},
            y_range=(0, 1),
            points=_marks(data, x),
            percent=True,
            size=size,
            spans=_stages(rows, x),
        )
        for label, x, size in (
            ("environment steps", "step", (WIDTH, HEIGHT)),
            ("minutes of training", "seconds", SMALL),
        )
    )
    rest = [("Success against time", timed)]
    for title, lines in SIGNALS.items():
        series = {name: _line(rows, key) for name, key in lines.items()}
        plot = line_plot(title, "environment steps", series, size=SMALL, spans=_stages(rows))
        rest.append((_titled(title, series), plot))
    title = "Environment steps per second"
    speed = {"steps per second": _speed(rows)}
    rest.append((title, line_plot(title, "environment steps", speed, size=SMALL)))
    note = (
        '<p class="soft">Line: success of the last 100 training episodes (with exploration). '
        "Dots: evaluation without exploration, with 95 % Wilson intervals.</p>"
    )
    names = dict.fromkeys(name for _, _, name in _stages(rows))
    if names:
        said = ", ".join(f"{i}: {escape(name)}" for i, name in enumerate(names, 1))
        note += f'<p class="soft">Shaded: stages of the schedule ({said}).</p>'
    figures = "".join(f"<figure><figcaption>{escape(t)}</figcaption>{svg}</figure>" for t, svg in rest if svg)
    first = "<figure><figcaption>Success against environment steps</figcaption>" + main + "</figure>"
    return _section("Learning", f'{first}{note}<div class="two">{figures}</div>{_apart(rows)}')


def _apart(rows: list[dict[str, Any]]) -> str:
    """Student and teacher, task by task, when it began and now."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            name, _, task = key.partition("/")
            if name == "disagreement" and task and value is not None:
                found.setdefault(task, []).append(value)
    cells = [[task, f"{line[0]:.3f}", f"{line[-1]:.3f}"] for task, line in sorted(found.items())]
    return _table("Distance from the teacher by task (KL per word, nats)", ["task", "first", "newest"], cells)


def _titled(title: str, series: dict[str, list[Point]]) -> str:
    """The caption, with the lines' colours when there are several."""
    names = [name for name, line in series.items() if line]
    colours = ("blue", "green", "yellow")
    legend = ", ".join(f"{colour}: {name}" for name, colour in zip(names, colours, strict=False))
    return f"{title} ({legend})" if len(names) > 1 else title


def _cost(data: dict[str, Any]) -> str:
    def minutes(key: str) -> str:
        return f"{(data.get(key) or 0) / 60:.1f} min"

    seconds, steps = data.get("train_seconds") or 0, data.get("env_steps") or 0
    cards = {
        "training": minutes("train_seconds"),
        "in all": minutes("wall_seconds"),
        "environment steps": f"{steps:,}",
        "steps per second": f"{steps / seconds:.0f}" if seconds else "-",
        "episodes": f"{data.get('episodes') or 0:,}",
        "peak memory": f"{(data.get('peak_rss_mb') or 0) / 1024:.1f} GiB",
        "seed": str(data.get("seed", "-")),
    }
    items = "".join(f"<li><b>{escape(value)}</b>{escape(name)}</li>" for name, value in cards.items())
    return _section("Cost", f'<ul class="cards">{items}</ul>')


def _config(text: str | None) -> str:
    if not text:
        return ""
    return _section(
        "Configuration",
        "<details><summary>All settings of this run (config.yaml)</summary>"
        f'<pre tabindex="0" aria-label="config.yaml">{escape(text)}</pre></details>',
    )
