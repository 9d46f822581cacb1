"""Model directories that a policy folder keeps inside itself, named by relative path so that the folder can be moved.

LeRobot's VLAs name the model they are built on (a hub id or a directory) in their configuration and in their tokenizer
step; hub ids are left as they are.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from vla_rl.errors import UserError

VLM_FOLDER, CLIP_FOLDER = "vlm", "clip"
FOLDERS = (VLM_FOLDER, CLIP_FOLDER)
FIELDS = ("vlm_model_name", "vision_encoder_name", "text_encoder_name")
"""Where LeRobot's configurations name such a directory."""


def inside(folder: Path) -> list[Path]:
    """The model directories inside a policy folder."""
    return [folder / name for name in FOLDERS if (folder / name / "config.json").is_file()]


def copy_inside(source: Path, target: Path) -> None:
    """Copy the model directories of one policy folder into another."""
    for path in inside(source):
        shutil.copytree(path, target / path.name, dirs_exist_ok=True)


def blank_weights(path: Path) -> None:
    """Zero the weights of such a directory, which the policy's own replace at loading.

    LeRobot wants the file of a CLIP; zeros cost nothing in an archive or a repository.
    """
    import torch
    from safetensors.torch import load_file, save_file

    file = path / "model.safetensors"
    save_file({k: torch.zeros_like(v) for k, v in load_file(file).items()}, file, {"format": "pt"})


def make_absolute(config: Any, folder: Path) -> None:
    """Point the configuration's relative names into ``folder``, in memory.

    Raises:
        UserError: a directory that is named is not there.
    """
    for name in FIELDS:
        if (value := getattr(config, name, None)) in FOLDERS:
            if not (folder / value / "config.json").is_file():
                raise UserError(f"{folder / value / 'config.json'} is missing: copy the folder again")
            setattr(config, name, str((folder / value).resolve()))


def make_relative(folder: Path) -> None:
    """Rewrite absolute paths of the inside directories in a saved policy's JSON files."""
    if not inside(folder):
        return
    for file in folder.glob("*.json"):
        data = json.loads(file.read_text())
        changed = _replaced(data)
        if changed != data:
            file.write_text(json.dumps(changed, indent=2) + "\n")


def _replaced(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: Path(value).name
            if key in (*FIELDS, "tokenizer_name") and isinstance(value, str) and Path(value).name in FOLDERS
            else _replaced(value)
            for key, value in node.items()
        }
    return [_replaced(value) for value in node] if isinstance(node, list) else node
