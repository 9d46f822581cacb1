"""The nano VLA: size, settings, tokenizer."""

import pytest
import tiny

from vla_rl.errors import UserError
from vla_rl.policies.nano import build_smolvla_nano, build_tokenizer


def test_shipped_size_is_3_to_6_million(tmp_path):
    from safetensors import safe_open

    out = build_smolvla_nano(tmp_path / "nano", state_dim=16, action_dim=4, tasks=tiny.TASKS)
    with safe_open(out / "model.safetensors", "pt") as tensors:
        count = sum(tensors.get_tensor(k).numel() for k in tensors.keys())  # noqa: SIM118
    assert 3e6 < count < 6e6


def test_every_instruction_fits_and_differs():
    tokenizer = build_tokenizer(tiny.TASKS)
    ids = [tuple(tokenizer(task + "\n").input_ids) for task in tiny.TASKS]
    assert len(set(ids)) == 3 and max(map(len, ids)) <= 24
    assert tokenizer.decode(ids[0]).strip() == tiny.TASKS[0]


def test_bad_settings(tmp_path):
    with pytest.raises(UserError, match="no setting text_with: did you mean text_width"):
        tiny.tiny_vla(tmp_path / "a", text_with=3)
    with pytest.raises(UserError, match="multiple of 32 pixels, not 50x50"):
        tiny.tiny_vla(tmp_path / "b", image_size=50)
    with pytest.raises(UserError, match="cameras"):
        tiny.tiny_vla(tmp_path / "c", cameras=())
    tiny.tiny_vla(tmp_path / "d")
    with pytest.raises(UserError, match="already holds a policy"):
        tiny.tiny_vla(tmp_path / "d")
