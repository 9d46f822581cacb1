"""SAPIEN's ``minimal`` shaders without the light of an environment map, for scenes that have none.

That light is weighed by a table which SAPIEN computes in a shader when it draws its first picture: nothing on a GPU, nine
seconds on a CPU, in every process. Where there is no environment map it weighs nothing: the pictures are the same to the bit
(tests/sim/test_shaders.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sim.rendering.layer import user_cache

TABLE = "samplerBRDFLUT"
LOOKED_UP = f"texture({TABLE}, vec2(roughness, dotNV)).xy"


@contextlib.contextmanager
def unlit_by_surroundings() -> Iterator[None]:
    """Cameras made within it, that ask for ``minimal``, get these shaders; nothing changes where SAPIEN's are other than known."""
    import sapien.render

    pack, real = _pack(Path(sapien.__file__).parent / "vulkan_shader"), sapien.render.set_camera_shader_dir
    if pack is not None:
        # ManiSkill sets picture formats by the pack's name, so the name stays and only its folder is another.
        sapien.render.set_camera_shader_dir = lambda name: real(str(pack) if name == "minimal" else name)
    try:
        yield
    finally:
        sapien.render.set_camera_shader_dir = real


def has_surroundings(env: Any) -> bool:
    """Whether any scene of a ManiSkill environment has an environment map."""
    return any(scene.render_system.cubemap is not None for scene in env.scene.sub_scenes)


def _pack(shaders: Path) -> Path | None:
    """Folder of the changed pack, written once per user and version; None = what is to be changed is not there."""
    sources = {p.name: p.read_text() for p in sorted((shaders / "minimal").glob("*.*"))}
    looked = [text for text in sources.values() if f"texture({TABLE}" in text]
    if not looked or not all(LOOKED_UP in text for text in looked):
        return None
    changed = {name: _changed(text) for name, text in sources.items()}
    digest = hashlib.sha256("".join(changed.values()).encode()).hexdigest()[:12]
    folder = user_cache() / "shaders" / digest
    if not folder.is_dir():
        draft = folder.with_name(f"{digest}.{os.getpid()}")
        shutil.copytree(shaders / "common", draft / "common")
        (draft / "minimal").mkdir()
        for name, text in changed.items():
            (draft / "minimal" / name).write_text(text)
        try:
            draft.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(draft, ignore_errors=True)
    return folder / "minimal"


def _changed(text: str) -> str:
    lines = [line for line in text.splitlines() if not ("uniform sampler2D" in line and TABLE in line)]
    return "\n".join(lines).replace(LOOKED_UP, "vec2(0)") + "\n"
