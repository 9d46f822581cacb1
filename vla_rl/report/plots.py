"""Small SVG plots: no script, no external file, readable in light and dark and by screen readers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 640, 260
SMALL = 400, 220
"""Size of a plot that shares its row with another: its text stays legible."""
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 16, 40
MOST_POINTS = 400
"""Points drawn per line; longer ones are thinned by averaging neighbours (a page stays small)."""

Point = tuple[float, float]
Mark = tuple[float, float, float, float]
"""(x, y, low, high): a value with its interval."""
Span = tuple[float, float, str]
"""(from x, to x, name): a part of the horizontal axis."""


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) between ``low`` and ``high``."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [(first + i) * step for i in range(count)]


def number(value: float) -> str:
    """A short number: 12k, 3.4, 0.002."""
    if value and abs(value) >= 1_000_000:
        return f"{value / 1e6:g}M"
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:.4g}"


def thin(line: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most ``most`` points, each the mean of its neighbours; what is not finite is left out."""
    points = [(float(x), float(y)) for x, y in line if math.isfinite(x) and math.isfinite(y)]
    size = -(-len(points) // most) if points else 1
    if size == 1:
        return points
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def line_plot(
    title: str,
    x_label: str,
    series: Mapping[str, Sequence[Point]],
    *,
    y_range: tuple[float, float] | None = None,
    points: Sequence[Mark] = (),
    percent: bool = False,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    spans: Sequence[Span] = (),
) -> str:
    """An SVG of one or more lines; "" when there is nothing to show.

    Args:
        title: for the reader and for screen readers.
        x_label: of the horizontal axis.
        series: name -> (x, y) points.
        y_range: fixed vertical range; None = of the data.
        points: markers with error bars.
        percent: y is a fraction, shown in percent.
        size: width and height in units of the text's size (12).
        spans: shaded parts, numbered as the caption names them; one without width is a line.
    """
    width, height = size
    lines = {name: kept for name, line in series.items() if (kept := thin(line))}
    xs = [x for line in lines.values() for x, _ in line] + [p[0] for p in points]
    ys = [y for line in lines.values() for _, y in line] + [v for p in points for v in p[1:]]
    if not xs:
        return ""
    x0, x1 = min(xs), max(xs)
    y0, y1 = y_range or (min(ys), max(ys))
    x1 = x1 if x1 > x0 else x0 + 1
    if not y1 > y0:
        y0, y1 = y0 - 0.5 * (abs(y0) or 1), y0 + 0.5 * (abs(y0) or 1)

    def px(x: float) -> float:
        return LEFT + (x - x0) / (x1 - x0) * (width - LEFT - RIGHT)

    def py(y: float) -> float:
        return height - BOTTOM - (min(max(y, y0), y1) - y0) / (y1 - y0) * (height - TOP - BOTTOM)

    parts = [_head(title, _describe(lines, points, percent), width, height)]
    parts += _shades(spans, px, (x0, x1), (TOP, height - BOTTOM))
    for y in nice_ticks(y0, y1):
        label = f"{100 * y:g} %" if percent else number(y)
        parts.append(_rule(LEFT, width - RIGHT, py(y), py(y), "grid"))
        parts.append(_text(LEFT - 7, py(y) + 4, label, "end"))
    for x in nice_ticks(x0, x1, width // 80):
        parts.append(_rule(px(x), px(x), height - BOTTOM, height - BOTTOM + 4, "grid"))
        parts.append(_text(px(x), height - BOTTOM + 17, number(x), "middle"))
    parts.append(_text((LEFT + width - RIGHT) / 2, height - 5, x_label, "middle"))
    for index, (name, line) in enumerate(lines.items()):
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in line)
        parts.append(f'<polyline class="s{index}" points="{path}"><title>{escape(name)}</title></polyline>')
    for x, y, low, high in points:
        parts.append("<g class='mark'>" + _rule(px(x), px(x), py(low), py(high), "bar"))
        parts += [_rule(px(x) - 4, px(x) + 4, py(v), py(v), "bar") for v in (low, high)]
        tip = f"{100 * y:.1f} % ({100 * low:.0f}-{100 * high:.0f} %)" if percent else number(y)
        parts.append(f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="4.5"><title>{tip}</title></circle></g>')
    return "".join(parts) + "</svg>"


def _shades(
    spans: Sequence[Span], px: Callable[[float], float], seen: tuple[float, float], ys: tuple[float, float]
) -> list[str]:
    """Rectangles of the spans that are ``seen``, every other one shaded, each with its number at the top."""
    parts: list[str] = []
    free = 0.0  # where the next number has room
    for index, (begin, end, name) in enumerate(spans):
        left, right = px(min(max(begin, seen[0]), seen[1])), px(min(max(end, seen[0]), seen[1]))
        if end < seen[0] or begin > seen[1]:
            continue
        parts.append(
            f'<rect class="span{index % 2}" x="{left:.1f}" y="{ys[0]}" width="{max(1.0, right - left):.1f}" '
            f'height="{ys[1] - ys[0]}"><title>{escape(name)}</title></rect>'
        )
        free = max(left + 4, free) + 12
        parts.append(_text(free - 12, ys[0] - 4, str(index + 1), "start"))
    return parts


def interval_bars(rows: Sequence[tuple[str, float, float, float]], title: str = "Success rates") -> str:
    """Horizontal bars with intervals: (label, rate, low, high), all fractions."""
    if not rows:
        return ""
    pitch = 44
    height = pitch * len(rows) + 30
    left, right = 90, 70
    text = "; ".join(
        f"{name}: {100 * rate:.0f} percent, interval {100 * low:.0f} to {100 * high:.0f}"
        for name, rate, low, high in rows
    )
    parts = [_head(title, text, WIDTH, height)]

    def px(value: float) -> float:
        return left + value * (WIDTH - left - right)

    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_rule(px(tick), px(tick), 6, height - 22, "grid"))
        parts.append(_text(px(tick), height - 7, f"{100 * tick:.0f} %", "middle"))
    for index, (name, rate, low, high) in enumerate(rows):
        y = 12 + pitch * index
        middle = y + 14
        parts.append(_text(left - 10, middle + 5, name, "end", "label"))
        parts.append(
            f'<rect class="b{index % 2}" x="{left}" y="{y}" width="{max(1.0, px(rate) - left):.1f}" '
            'height="28" rx="4"/>'
        )
        parts.append(_rule(px(low), px(high), middle, middle, "bar"))
        parts += [_rule(px(v), px(v), middle - 6, middle + 6, "bar") for v in (low, high)]
        parts.append(_text(max(px(high), px(rate)) + 9, middle + 5, f"{100 * rate:.0f} %", "start", "label"))
    return "".join(parts) + "</svg>"


def _head(title: str, description: str, width: float, height: float) -> str:
    label = escape(f"{title}. {description}" if description else title, quote=True)
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}">'


def _rule(x1: float, x2: float, y1: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    css = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{css}>{escape(text)}</text>'


def _describe(lines: dict[str, list[Point]], points: Sequence[Mark], percent: bool) -> str:
    """What the picture says, in words."""

    def say(value: float) -> str:
        return f"{100 * value:.0f} percent" if percent else number(value)

    parts = [
        f"{name} goes from {say(line[0][1])} to {say(line[-1][1])}, "
        f"lowest {say(min(y for _, y in line))}, highest {say(max(y for _, y in line))}"
        for name, line in lines.items()
    ]
    parts += [f"evaluated at {number(x)}: {say(y)}" for x, y, _, _ in points]
    return "; ".join(parts)
