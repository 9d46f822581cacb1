import json
import re
from html.parser import HTMLParser

import pytest
import torch

from vla_rl.report import write_report
from vla_rl.rollout.video import save_mp4
from vla_rl.stats import summary

VOID = {"meta", "link", "br", "source", "img"}
JSON_KEYS = [
    "base",
    "final",
    "train_seconds",
    "wall_seconds",
    "env_steps",
    "episodes",
    "peak_rss_mb",
    "seed",
    "versions",
]


class Page(HTMLParser):
    """Checks nesting and collects elements."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.elements, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack and self.stack[-1] == tag, f"</{tag}> closes {self.stack[-3:]}"
        self.stack.pop()

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def result(won, n=100):
    return summary([i < won for i in range(n)], ["push" if i % 2 else "pull" for i in range(n)])


@pytest.fixture
def data(tmp_path):
    rows = [
        {
            "step": step,
            "seconds": step / 50,
            "episodes": step // 40,
            "q": 0.5 if step != 1000 else None,
            "critic_loss": 1.0 / step,
            "residual": step / 10_000,
            "success": min(0.9, 0.4 + step / 10_000),
        }
        for step in range(500, 5001, 500)
    ]
    rows.append({"step": 2500, "seconds": 50.0, "evaluation": result(30, 50)})
    videos = {
        name: save_mp4([torch.full((3, 32, 32), 90, dtype=torch.uint8)] * 3, tmp_path / f"{name}.mp4", 10)
        for name in ("before", "after")
    }
    return {
        "title": "push <one> & two",
        "base": result(48),
        "final": result(95),
        "train_seconds": 100.0,
        "wall_seconds": 180.5,
        "env_steps": 5000,
        "episodes": 125,
        "peak_rss_mb": 2048.0,
        "seed": 3,
        "versions": {"torch": "2.11.0", "python": "3.12.1"},
        "curve": [r for r in rows if "success" in r],
        "evaluations": [{"step": 2500, "seconds": 50.0} | result(30, 50)],
        "metrics": rows,
        "config": "run:\n  name: <script>alert(1)</script>\n",
        "videos": videos,
    }


@pytest.fixture
def page(tmp_path, data):
    return Page(write_report(tmp_path, data).read_text())


def test_json_is_exactly_as_designed(tmp_path, data):
    write_report(tmp_path, data)
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report) == JSON_KEYS
    assert report["base"] == data["base"] and report["final"] == data["final"]
    assert set(report["final"]) == {"successes", "episodes", "rate", "wilson95", "per_task"}
    assert set(report["final"]["per_task"]) == {"push", "pull"}
    assert set(report["final"]["per_task"]["push"]) == {"successes", "episodes", "rate", "wilson95"}
    assert (report["env_steps"], report["seed"], report["wall_seconds"]) == (5000, 3, 180.5)


def test_the_page_needs_nothing_from_outside(tmp_path, data):
    text = write_report(tmp_path, data).read_text()
    page = Page(text)
    for _, attributes in page.elements:
        for name in ("src", "href", "poster", "data", "action"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not page.all("script") and "@import" not in text and "url(" not in text
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[\w+/=]*", "", text))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "after.mp4",
        "before.mp4",
        "report.html",
        "report.json",
    ]


def test_the_page_says_what_happened(page):
    assert "Success went from 48.0 % (48/100, 95 % interval 38-58 %) to 95.0 % (95/100" in page.text
    assert "after 5,000 environment steps" in page.text and "overlap" not in page.text
    for text in (
        "Per task",
        "push",
        "pull",
        "2.0 GiB",
        "1.7 min",
        "3.0 min",
        "2.11.0",
        "Machine",
        "processor",
    ):
        assert text in page.text
    assert "<script>alert(1)</script>" in page.text and "push <one> & two" in page.text, (
        "escaped, so it is text"
    )
    titles = " ".join(a["aria-label"] for a in page.all("svg"))
    for plot in (
        "Success before and after",
        "Success against environment steps",
        "Success against minutes",
        "Value of the critic",
        "Critic loss",
        "Size of the correction",
        "Environment steps per second",
    ):
        assert plot in titles
    assert "Actor loss" not in titles, "nothing was logged of it"


def test_what_distillation_logs_is_plotted(tmp_path, data):
    logged = [
        {"step": s, "entropy": 3.0 - s, "agreement": s, "forgotten": s, "mixed_groups": 0.5} for s in (0, 1)
    ]
    page = Page(write_report(tmp_path, data | {"metrics": logged}).read_text())
    titles = " ".join(a["aria-label"] for a in page.all("svg"))
    for plot in ("Entropy of the action words", "Same likeliest word", "Forgotten", "Groups of episodes"):
        assert plot in titles


def test_how_far_each_task_is_from_its_teacher_is_a_table(tmp_path, data):
    first = {"step": 100, "success": 0.1, "disagreement": 0.5, "disagreement/open the door": 0.75}
    newest = {"step": 200, "success": 0.2, "disagreement": 0.25, "disagreement/open the door": 0.125}
    text = write_report(tmp_path, data | {"metrics": [{"step": 0}, first, newest]}).read_text()
    assert "Distance from the teacher by task" in text
    assert '<th scope="row">open the door</th><td>0.750</td><td>0.125</td>' in text
    assert "by task (KL" not in write_report(tmp_path, data).read_text()


def test_overlapping_intervals_are_said(tmp_path, data):
    page = Page(write_report(tmp_path, data | {"final": result(52)}).read_text())
    assert "The two intervals overlap" in page.text


def test_videos_are_inside_and_playable(tmp_path, page):
    from base64 import b64decode

    import av

    assert len(page.all("video")) == 2 and all("controls" in v and "muted" in v for v in page.all("video"))
    kind, content = page.all("source")[0]["src"].split(",", 1)
    assert kind == "data:video/mp4;base64"
    (tmp_path / "copy.mp4").write_bytes(b64decode(content))
    with av.open(str(tmp_path / "copy.mp4")) as container:
        assert len(list(container.decode(video=0))) == 3


def test_the_page_can_be_read_without_eyes_or_mouse(page):
    assert page.all("html")[0]["lang"] == "en" and len(page.all("main")) == 1
    assert len(page.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False)), "no heading level is skipped"
    for attributes in page.all("svg"):
        assert attributes["role"] == "img" and len(attributes["aria-label"]) > 20
    assert all(a.get("aria-label") for a in page.all("video"))
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(a["aria-labelledby"] in ids for a in page.all("section"))
    success = next(a["aria-label"] for a in page.all("svg") if "before and after" in a["aria-label"])
    assert "before: 48 percent, interval 38 to 58; after: 95 percent" in success


def test_a_run_that_was_stopped_says_why(tmp_path, data):
    page = Page(write_report(tmp_path, data | {"stopped": "60% of <them> were none"}).read_text())
    assert "Training was stopped: 60% of <them> were none." in page.text
    assert json.loads((tmp_path / "report.json").read_text())["stopped"] == "60% of <them> were none"


def test_a_run_that_is_hardly_begun(tmp_path):
    page = Page(write_report(tmp_path, {"title": "new"}).read_text())
    assert "No evaluation was part of this run" in page.text and not page.all("svg")
    assert list(json.loads((tmp_path / "report.json").read_text())) == JSON_KEYS


@pytest.mark.parametrize(
    "missing", ["base", "final", "evaluations", "metrics", "curve", "versions", "config", "videos"]
)
def test_any_part_may_be_missing(tmp_path, data, missing):
    Page(write_report(tmp_path, data | {missing: None}).read_text())


def test_odd_numbers_do_no_harm(tmp_path, data, caplog):
    rows = [
        {"step": 1, "q": None, "seconds": 1.0},
        {"step": 2, "q": float("nan"), "seconds": 1.0},
        {"step": 2, "q": 1e9, "critic_loss": 0.0, "seconds": 0.5},
    ]
    odd = data | {"metrics": rows, "curve": [], "peak_rss_mb": float("nan"), "final": summary([], [])}
    odd["videos"] = {"before": tmp_path / "not-there.mp4"}
    text = write_report(tmp_path, odd).read_text()
    Page(text)
    assert "nan" not in text.lower().replace("nano", "") and "not-there.mp4 is not there" in caplog.text
    report = json.loads((tmp_path / "report.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert report["peak_rss_mb"] is None


def test_an_error_keeps_the_report_before(tmp_path, data):
    page = write_report(tmp_path, data)
    before = page.read_text(), (tmp_path / "report.json").read_text()
    with pytest.raises(KeyError):
        write_report(tmp_path, data | {"base": {"episodes": 3}})
    assert (page.read_text(), (tmp_path / "report.json").read_text()) == before
    assert not list(tmp_path.glob(".*"))
