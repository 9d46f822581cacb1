"""The table of all comparisons: rows in their order, what is missed said, what is missing named."""

import json

from vla_rl.bench import all as every
from vla_rl.config import compose

ROW = {"ours": 20.0, "peer": 10.0, "unit": "updates/s", "ratio": 2.0, "ratio95": [1.9, 2.1]}


def test_what_has_been_measured_is_kept_and_said(tmp_path):
    config = compose("bench_all", [f"out={tmp_path}", "only=[replay]"])
    rows = [ROW | {"name": "replay_vs_torchrl"}, ROW | {"name": "replay_vs_lerobot"}]
    (tmp_path / "replay.json").write_text(json.dumps({"rows": rows}))
    (tmp_path / "ray.json").write_text(json.dumps({"rows": [ROW | {"name": "apart_per_core"}]}))
    assert every.run([f"out={tmp_path}", f"work={tmp_path}", "only=[replay]"]) == 0
    page = (tmp_path / "README.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in lines] == [
        "replay_vs_lerobot",
        "replay_vs_torchrl",
        "apart_per_core",
    ]
    assert "3: **no**" in lines[0] and "1.5: yes" in lines[1] and lines[2].endswith("| - |")
    assert "`td3_vs_sb3`" in page.split("Not measured here")[1]
    assert json.loads((tmp_path / "results.json").read_text())["rows"][1]["least"] == 1.5
    first = (tmp_path / "ratios.svg").read_bytes()
    every.write_all(config)
    assert (tmp_path / "ratios.svg").read_bytes() == first
