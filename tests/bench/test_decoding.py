"""Both sides of the decoding benchmark say the same words."""

import json

from vla_rl.commands.bench import run


def test_equal_words_and_a_ratio(tmp_path):
    out = tmp_path / "results.json"
    model = "{text_width:64,text_layers:2,vision_width:32,vision_layers:1}"
    small = ["batch_size=3", "chunk=2", "actions=3", "image_size=64", "rounds=2", f"model={model}"]
    assert run(["decoding", *small, f"json={out}"]) == 0
    found = json.loads(out.read_text())
    assert found["equal_words"] == 1.0
    assert found["rows"][0]["name"] == "vs_generate" and found["rows"][0]["ratio"] > 0
