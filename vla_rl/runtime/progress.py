"""One progress display: live bars on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

EVERY = 5.0
"""Seconds between plain lines."""


class Tracker:
    """Shows how far something has come; ``update`` is cheap enough for every step."""

    def __init__(self, title: str, total: int, unit: str, bar: Any = None) -> None:
        self.title, self.total, self.unit, self._bar = title, total, unit, bar
        self.began = self._shown = time.monotonic()
        self.first: int | None = None
        self.done = 0

    def update(self, done: int, **fields: Any) -> None:
        """Say that ``done`` of the total are done; ``fields`` are shown behind."""
        if self.first is None:
            self.first = min(done, self.done)
        self.done = done
        now = time.monotonic()
        if self._bar is not None:
            if now - self._shown > 0.1 or done >= self.total:
                self._shown = now
                self._bar(done, self._fields(fields))
        elif now - self._shown > EVERY:
            self._shown = now
            print(f"{self.title} {done}/{self.total} {self._fields(fields)} {self._left()} left", flush=True)

    def rate(self) -> float:
        """Units per second so far."""
        return (self.done - (self.first or 0)) / max(1e-6, time.monotonic() - self.began)

    def _fields(self, fields: dict[str, Any]) -> str:
        shown = "  ".join(f"{k} {v}" for k, v in fields.items())
        return f"{self.rate():.1f} {self.unit}s/s  {shown}".rstrip()

    def _left(self) -> str:
        rate = self.rate()
        if rate <= 0:
            return "?"
        seconds = int((self.total - self.done) / rate)
        return f"{seconds // 60}:{seconds % 60:02d}"


@contextmanager
def track(title: str, total: int, unit: str = "step") -> Iterator[Tracker]:
    """``with track("train", 1000) as bar: bar.update(n, success="40 %")``."""
    if not sys.stdout.isatty():
        tracker = Tracker(title, total, unit)
        yield tracker
        elapsed = time.monotonic() - tracker.began
        print(f"{title} {tracker.done}/{total} in {elapsed:.0f} s", flush=True)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[info]}"),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(title, total=total, info="")
        yield Tracker(title, total, unit, lambda done, info: progress.update(task, completed=done, info=info))
