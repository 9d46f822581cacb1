"""Small SVG plots: no script, no external file, readable in light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 34

Point = tuple[float, float]


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    step = (high - low) / (count - 1) if high > low else 1.0
    return [low + i * step for i in range(count)]


def _number(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:.0f}k"
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.3g}"


def line_plot(
    title: str,
    x_label: str,
    series: dict[str, Sequence[Point]],
    *,
    y_range: tuple[float, float] | None = None,
    points: Sequence[tuple[float, float, float, float]] = (),
    percent: bool = False,
) -> str:
    """An SVG of one or more lines.

    Args:
        title: for the reader and for screen readers.
        x_label: of the horizontal axis.
        series: name -> (x, y) points.
        y_range: fixed vertical range; None = of the data.
        points: (x, y, low, high) markers with error bars.
        percent: y is a fraction, shown in percent.
    """
    xs = [x for line in series.values() for x, _ in line] + [p[0] for p in points]
    ys = [y for line in series.values() for _, y in line] + [v for p in points for v in p[1:]]
    if not xs:
        return ""
    x0, x1 = min(xs), max(xs)
    y0, y1 = y_range or (min(ys), max(ys))
    x1, y1 = (x1 if x1 > x0 else x0 + 1), (y1 if y1 > y0 else y0 + 1)

    def px(x: float) -> float:
        return LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (min(max(y, y0), y1) - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for y in _ticks(y0, y1):
        label = f"{100 * y:.0f} %" if percent else _number(y)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(y):.1f}" y2="{py(y):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{py(y) + 4:.1f}" text-anchor="end">{label}</text>')
    for x in _ticks(x0, x1):
        parts.append(f'<text x="{px(x):.1f}" y="{HEIGHT - 16}" text-anchor="middle">{_number(x)}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 2}" text-anchor="middle">{escape(x_label)}</text>')
    for index, (name, line) in enumerate(series.items()):
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in line)
        parts.append(f'<polyline class="s{index}" points="{path}"><title>{escape(name)}</title></polyline>')
    for x, y, low, high in points:
        parts.append(f'<line class="bar" x1="{px(x):.1f}" x2="{px(x):.1f}" y1="{py(low):.1f}" y2="{py(high):.1f}"/>')
        parts.append(f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="4"/>')
    return "".join(parts) + "</svg>"


def interval_bars(rows: Sequence[tuple[str, float, float, float]]) -> str:
    """Horizontal bars with intervals: (label, rate, low, high), all fractions."""
    height = 34 * len(rows) + 24
    left, right = 120, 60
    text = "; ".join(f"{name} {100 * rate:.0f} percent" for name, rate, _, _ in rows)
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(text)}">']

    def px(value: float) -> float:
        return left + value * (WIDTH - left - right)

    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<line class="grid" x1="{px(tick)}" x2="{px(tick)}" y1="4" y2="{height - 20}"/>')
        parts.append(f'<text x="{px(tick)}" y="{height - 4}" text-anchor="middle">{100 * tick:.0f} %</text>')
    for index, (name, rate, low, high) in enumerate(rows):
        y = 8 + 34 * index
        parts.append(f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect class="b{index % 2}" x="{left}" y="{y}" width="{px(rate) - left:.1f}" height="20" rx="3"/>')
        parts.append(f'<line class="bar" x1="{px(low):.1f}" x2="{px(high):.1f}" y1="{y + 10}" y2="{y + 10}"/>')
        parts.append(f'<text x="{px(high) + 6:.1f}" y="{y + 15}">{100 * rate:.0f} %</text>')
    return "".join(parts) + "</svg>"
