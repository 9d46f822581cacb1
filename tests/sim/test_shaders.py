"""Shaders without an environment map's light: the same pictures, and only where nothing is lost."""

import contextlib

import pytest
import sapien
import torch

from sim import maniskill_build
from sim.rendering import setup
from sim.rendering.shaders import LOOKED_UP, _pack, has_surroundings
from sim.vector import make

ADAPTER = "sim.maniskill:ManiSkillEnv"
CAMERA = "observation.images.base"


def picture(id):
    env = make(ADAPTER, id, 1, 0)
    env.reset(seed=3)
    seen = env.look()[CAMERA]
    env.close()
    return seen


in_software = pytest.mark.skipif(setup().kind == "gpu", reason="a GPU keeps SAPIEN's own shaders")


@in_software
def test_pictures_are_those_of_sapiens_own_shaders(monkeypatch):
    ours = picture("PickCube-v1")
    monkeypatch.setattr(maniskill_build, "unlit_by_surroundings", contextlib.nullcontext)
    assert torch.equal(ours, picture("PickCube-v1")) and ours.float().std() > 10


@in_software
def test_a_scene_with_an_environment_map_is_known(monkeypatch):
    env = make(ADAPTER, "PushCube-v1", 1, 0)
    scene = env.rows.envs[0].env
    assert not has_surroundings(scene)
    env.close()
    seen = []
    monkeypatch.setattr(maniskill_build, "has_surroundings", lambda scene: not seen.append(scene))
    real = sapien.render.set_camera_shader_dir
    made = []
    monkeypatch.setattr(sapien.render, "set_camera_shader_dir", lambda name: (made.append(name), real(name)))
    make(ADAPTER, "PushCube-v1", 1, 0).close()
    assert len(seen) == 1 and made[0] != "minimal" and made[-1] == "minimal", "built again with SAPIEN's own"


def test_shaders_that_are_not_the_known_ones_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shaders = tmp_path / "vulkan_shader"
    for name in ("common", "minimal"):
        (shaders / name).mkdir(parents=True)
    known = f"uniform sampler2D samplerBRDFLUT;\nvec2 w = {LOOKED_UP};\n"
    (shaders / "minimal" / "gbuffer.frag").write_text(known)
    pack = _pack(shaders)
    assert pack is not None and (pack / "gbuffer.frag").read_text() == "vec2 w = vec2(0);\n"
    assert _pack(shaders) == pack
    (shaders / "minimal" / "gbuffer.frag").write_text(known.replace("roughness", "rough"))
    assert _pack(shaders) is None
    (shaders / "minimal" / "gbuffer.frag").write_text("void main() {}\n")
    assert _pack(shaders) is None
