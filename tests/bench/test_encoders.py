"""The benchmark of image encoders: real pictures of a real simulator, few of them."""

import json

from vla_rl.commands.bench import run


def test_encoders_are_judged_on_scenes_that_they_have_not_seen(tmp_path):
    small = ["scenes=12", "held_out=4", "stills=2", "within=4", "steps=30", "batch_size=8", "seeds=[0]"]
    where = [f"work={tmp_path / 'work'}", f"out={tmp_path / 'out'}"]
    assert run(["encoders", "kinds=[conv,keypoints]", *small, *where]) == 0
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["pictures"] == 24 and list(found["encoders"]) == ["conv", "keypoints"]
    for (row,) in found["encoders"].values():
        assert 0 < row["learned_rms"] and 0 < row["held_out_rms"] < 0.5, "metres"
    page = (tmp_path / "out/README.md").read_text()
    assert "24 pictures of 12 scenes" in page and "| keypoints |" in page
