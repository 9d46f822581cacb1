"""Tiny policies, built once."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import tiny


@pytest.fixture(scope="session")
def vla_folder(tmp_path_factory):
    return tiny.tiny_vla(tmp_path_factory.mktemp("vla") / "nano")


@pytest.fixture(scope="session")
def act_folder(tmp_path_factory):
    return tiny.lerobot_folder(
        tmp_path_factory.mktemp("act") / "act", "act", images=False, env_state=4, **tiny.ACT
    )


@pytest.fixture(scope="session")
def diffusion_folder(tmp_path_factory):
    return tiny.lerobot_folder(
        tmp_path_factory.mktemp("diffusion") / "diffusion", "diffusion", **tiny.DIFFUSION
    )


@pytest.fixture(scope="session")
def dit_folder(tmp_path_factory):
    return tiny.tiny_dit(tmp_path_factory.mktemp("dit") / "dit")


@pytest.fixture(scope="session")
def dit_flow_folder(tmp_path_factory):
    return tiny.tiny_dit(tmp_path_factory.mktemp("dit_flow") / "dit", objective="flow_matching")
