import io
import subprocess
import sys

import pytest

from vla_rl.runtime import progress
from vla_rl.runtime.progress import Speed, Tracker, clock, track


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def time(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_plain_lines_every_few_seconds(time, capsys):
    with track("train", 1000) as bar:
        for step in range(1, 41):
            time.now += 0.25
            bar.update(step * 5, counts={"update": step * 10}, success="40 %")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "train 200/1000 in 0:10"
    assert lines[0].startswith("train 105/1000  20.0 steps/s  40.0 updates/s  success 40 %  0:44 left")
    assert len(lines) == 2


def test_a_resumed_run_counts_from_where_it_resumed(time):
    bar = Tracker("train", 60_000, "step")
    for step in range(30_000, 30_100, 10):
        time.now += 1
        bar.update(step)
    assert bar.rate() == pytest.approx(10)
    assert bar.left() == pytest.approx(29_910 / 10)


def test_a_known_start_gives_a_speed_at_the_first_update(time):
    bar = Tracker("train", 200, "step", start=100)
    time.now += 2
    bar.update(110)
    assert bar.rate() == pytest.approx(5) and bar.left() == pytest.approx(18)


def test_speed_follows_a_change_and_ignores_old_times(time):
    speed = Speed(time.now, 0)
    n = 0
    for rate, seconds in ((1, 100), (20, 100)):
        for _ in range(seconds * 10):
            time.now += 0.1
            n += rate
            speed.see(time.now, n)
    assert speed.rate() == pytest.approx(200, rel=0.02)
    assert len(speed._seen) < 100


def test_nothing_known_yet(time, capsys):
    bar = Tracker("evaluate", 10, "episode")
    assert bar.rate() == 0 and bar.left() is None
    time.now += 6
    bar.update(0)
    assert "? left" in capsys.readouterr().out


def test_clock():
    assert [clock(s) for s in (0, 61, 3599, 3600, 36_061)] == ["0:00", "1:01", "59:59", "1:00:00", "10:01:01"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, columns: int) -> str:
    """What a terminal of that width gets."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(columns))
    with track("train", 100) as bar:
        for step in range(101):
            bar.update(step, counts={"update": 2 * step}, success="[40 %]")
    return terminal.getvalue()


def test_bars_on_a_terminal(monkeypatch):
    text = shown(monkeypatch, 140)
    assert "\x1b[" in text and "100/100" in text
    assert "updates/s" in text and "success [40 %]" in text, "square brackets are text, not markup"


def test_a_narrow_terminal_keeps_the_numbers(monkeypatch):
    from rich import get_console

    get_console()  # the shared console has found its width already
    last = [line for line in shown(monkeypatch, 70).splitlines() if "100/100" in line][-1]
    assert "train" in last and "0:00:0" in last and "…" not in last.split("0:00:0")[0]


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "dumb")
    with track("train", 1) as bar:
        bar.update(1)
    assert terminal.getvalue() == "train 1/1 in 0:00\n"


def test_an_error_inside_is_not_swallowed(monkeypatch, capsys):
    with pytest.raises(ValueError, match="inside"), track("train", 1):
        raise ValueError("inside")


def test_needs_no_torch():
    code = "import sys, vla_rl.runtime.progress, vla_rl.runtime.run_folder; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_count_that_falls_back_begins_anew():
    speed = Speed(0.0)
    for now, done in ((0.0, 1000), (10.0, 1100), (11.0, 900), (21.0, 1000)):
        speed.see(now, done)
    assert speed.rate() == pytest.approx(10.0)
