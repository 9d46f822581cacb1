"""Compiles the Vulkan layer once per user and source version."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

from vla_rl.errors import UserError

LAYER_NAME = "VK_LAYER_VLA_RL_semaphore"
SOURCE = Path(__file__).with_name("semaphore_layer.c")


def user_cache() -> Path:
    """Where what was compiled or written for rendering lies, per user."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "vla_rl"


def cache_folder() -> Path:
    """Where the compiled layer of this source version lies."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    return user_cache() / "vulkan" / digest


def build_layer() -> Path:
    """Folder with the layer's library and manifest, compiled if it is not there yet.

    Raises:
        UserError: no C compiler or Vulkan headers.
    """
    folder = cache_folder()
    manifest = folder / "layer.json"
    if manifest.is_file():
        return folder
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise UserError(
            "software rendering needs a C compiler once: install gcc and libvulkan-dev (or run `make setup`)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libvla_rl_semaphore.so"
    temporary = folder / f"{library.name}.{os.getpid()}"
    command = [compiler, "-shared", "-fPIC", "-O2", "-fvisibility=hidden", "-o", str(temporary), str(SOURCE)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        line = (result.stderr.splitlines() or ["unknown error"])[0]
        raise UserError(f"cannot compile the Vulkan layer ({line}): install gcc and libvulkan-dev")
    temporary.replace(library)
    content = {
        "file_format_version": "1.1.2",
        "layer": {
            "name": LAYER_NAME,
            "type": "GLOBAL",
            "library_path": str(library),
            "api_version": "1.3.0",
            "implementation_version": "1",
            "description": "Stands in for VK_KHR_external_semaphore_fd on lavapipe",
            "functions": {
                "vkGetInstanceProcAddr": "vla_rl_instance_proc",
                "vkGetDeviceProcAddr": "vla_rl_device_proc",
            },
        },
    }
    draft = folder / f"layer.json.{os.getpid()}"
    draft.write_text(json.dumps(content, indent=2))
    draft.replace(manifest)
    return folder
