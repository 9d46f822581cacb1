"""One progress display: live bars on a terminal, a plain line every few seconds elsewhere. Needs no torch."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

EVERY = 5.0
"""Seconds between plain lines."""

WINDOW = 30.0
"""Seconds over which speeds are measured: long enough to be steady, short enough to show a change."""


class Speed:
    """Units per second over the last ``WINDOW`` seconds.

    The first value that it sees is its zero: a resumed run counts from where it resumed.
    """

    def __init__(self, began: float, start: int | None = None) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        if start is not None:
            self._seen.append((began, start))

    def see(self, now: float, done: int) -> None:
        """Note that ``done`` units are done at time ``now`` (seconds); fewer than before are a new beginning."""
        if self._seen and done < self._seen[-1][1]:  # a learner that was started again from its checkpoint
            self._seen.clear()
        # Two notes a second are enough; the newest is always kept exact.
        if len(self._seen) > 1 and now - self._seen[-2][0] < 0.5:
            self._seen.pop()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW:
            self._seen.popleft()

    def rate(self) -> float:
        """Units per second; 0 while unknown."""
        if len(self._seen) < 2:
            return 0.0
        (t0, n0), (t1, n1) = self._seen[0], self._seen[-1]
        return (n1 - n0) / max(1e-6, t1 - t0)


class Tracker:
    """Shows how far something has come; ``update`` is cheap enough for every step.

    Args:
        title: what is going on.
        total: units until the end.
        unit: of ``total``, singular.
        bar: called with (done, text) to draw; None = plain lines.
        start: units done already; None = whatever the first update says.
    """

    def __init__(
        self,
        title: str,
        total: int,
        unit: str,
        bar: Callable[[int, str], None] | None = None,
        start: int | None = None,
    ) -> None:
        self.title, self.total, self.unit, self._bar = title, total, unit, bar
        self.began = self._shown = time.monotonic()
        self.done = start or 0
        self._start = start
        self._speeds: dict[str, Speed] = {}

    def update(self, done: int, *, counts: Mapping[str, int] | None = None, **fields: Any) -> None:
        """Say that ``done`` of the total are done.

        Args:
            done: units so far, in all.
            counts: name (singular) -> how many so far; shown as a speed, e.g. ``{"update": 1200}``.
            fields: shown as they are, e.g. ``success="40 %"``.
        """
        self.done = done
        now = time.monotonic()
        for name, count in {self.unit: done, **(counts or {})}.items():
            if name not in self._speeds:
                self._speeds[name] = Speed(self.began, self._start if name == self.unit else None)
            self._speeds[name].see(now, count)
        if self._bar is not None:
            if now - self._shown > 0.1 or done >= self.total:
                self._shown = now
                self._bar(done, self._text(fields))
        elif now - self._shown > EVERY:
            self._shown = now
            print(f"{self.title} {done}/{self.total}  {self._text(fields)}", flush=True)

    def rate(self) -> float:
        """Units per second of late."""
        speed = self._speeds.get(self.unit)
        return speed.rate() if speed else 0.0

    def left(self) -> float | None:
        """Seconds that remain at the present speed; None while unknown."""
        rate = self.rate()
        return max(0, self.total - self.done) / rate if rate > 0 else None

    def _text(self, fields: Mapping[str, Any]) -> str:
        speeds = [f"{speed.rate():.1f} {name}s/s" for name, speed in self._speeds.items()]
        left = self.left()
        return "  ".join(
            [
                *speeds,
                *(f"{k} {v}" for k, v in fields.items()),
                f"{'?' if left is None else clock(left)} left",
            ]
        )


def clock(seconds: float) -> str:
    """``m:ss``, or ``h:mm:ss`` from an hour on."""
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def live() -> bool:
    """Whether standard output is a terminal that bars can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


@contextmanager
def track(title: str, total: int, unit: str = "step", start: int | None = None) -> Iterator[Tracker]:
    """A ``Tracker`` for as long as the block runs.

    ``with track("train", 1000) as bar: bar.update(n, counts={"update": m}, success="40 %")``
    """
    if not live():
        tracker = Tracker(title, total, unit, start=start)
        yield tracker
        print(f"{title} {tracker.done}/{total} in {clock(time.monotonic() - tracker.began)}", flush=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Column

    # In a narrow terminal the bar and the text at the end give way, never the numbers.
    columns = (
        TextColumn("[bold]{task.description}", table_column=Column(no_wrap=True, min_width=len(title))),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4, max_width=40)),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=2 * len(str(total)) + 1)),
        TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
        TextColumn("{task.fields[info]}", markup=False, table_column=Column(no_wrap=True)),
    )
    # Its own console: the shared one keeps the width that it found when something first printed.
    with Progress(*columns, console=Console()) as progress:
        task = progress.add_task(title, total=total, info="", completed=start or 0)

        def draw(done: int, info: str) -> None:
            progress.update(task, completed=done, info=info)

        yield Tracker(title, total, unit, draw, start)
