"""The Panda of ManiSkill under Cartesian control."""

from __future__ import annotations

from functools import lru_cache

import pinocchio as pin  # pyright: ignore[reportMissingImports]  (the wheel puts it on a path of its own)

from vla_rl.differential_ik import DifferentialIK

TCP_FRAME = "panda_hand_tcp"


@lru_cache(maxsize=4)
def _model(urdf: str) -> pin.Model:
    return pin.buildModelFromUrdf(urdf)


def panda_ik(urdf: str) -> DifferentialIK:
    """Seven joints, two fingers; ``urdf``: path of the Panda's."""
    model = _model(urdf)
    return DifferentialIK(model, model.getFrameId(TCP_FRAME), 7)
