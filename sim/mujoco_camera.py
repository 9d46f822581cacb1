"""Lean off-screen pictures of a MuJoCo model, for the simulators built on it."""

from __future__ import annotations

import atexit
import importlib
import os
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from sim.base import metres
from vla_rl.errors import UserError

_open: weakref.WeakSet[Any] = weakref.WeakSet()


def close_at_exit(thing: Any) -> None:
    """Call ``thing.close()`` when the interpreter ends, if it still lives; call this after its first picture.

    MuJoCo's EGL module ends the display in an exit handler of its own; ours, registered later, runs before it.
    """
    if not _open:
        atexit.register(_close_all)
    _open.add(thing)


def _close_all() -> None:
    for thing in list(_open):
        thing.close()


class LeanCameras:
    """Renders a model's cameras without shadows, reflections and multisampling: 16x faster in software.

    The OpenGL context is made at the first ``look``, so an environment that nobody looks at needs no renderer.

    Args:
        model: ``mujoco.MjModel``; its visual quality settings are lowered.
        names: cameras of the model.
        size: height and width in pixels.
        hidden_groups: geom groups left out (robosuite's collision shapes are group 0).
        zoom: how much narrower than the model's own the cameras' field of view is.
        shift: metres along x, y, z by which they are moved, in the frame of the body they are on (the world, most).

    Raises:
        UserError: a camera that the model has not, or a size or zoom that shows nothing.
    """

    def __init__(
        self,
        model: Any,
        names: Sequence[str],
        size: int,
        hidden_groups: Sequence[int] = (),
        zoom: float = 1.0,
        shift: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> None:
        import mujoco

        have = [model.camera(i).name for i in range(model.ncam)]
        for name in names:
            if name not in have:
                raise UserError(f"env.cameras has {name}, but the scene's cameras are {', '.join(have)}")
        if size < 8:
            raise UserError(f"env.image_size={size}: needs at least 8 pixels")
        if zoom <= 0:
            raise UserError(f"env.zoom={zoom} must be above 0")
        moved = metres(shift)
        for name in names:
            camera = model.camera(name)
            camera.fovy[:] = min(float(camera.fovy[0]) / zoom, 170.0)
            camera.pos[:] += moved
        self.model, self.names, self.size = model, tuple(names), size
        quality = model.vis.quality
        quality.offsamples, quality.shadowsize = 0, 1
        model.vis.global_.offwidth = max(size, model.vis.global_.offwidth)
        model.vis.global_.offheight = max(size, model.vis.global_.offheight)
        self.option = mujoco.MjvOption()
        for group in hidden_groups:
            self.option.geomgroup[group] = 0
        self.renderer: Any = None

    def look(self, data: Any) -> dict[str, np.ndarray]:
        """Camera name -> uint8 [3, H, W], right side up, of the present ``mujoco.MjData``.

        Raises:
            UserError: no OpenGL here.
        """
        if self.renderer is None:
            self.renderer = self._renderer()
            close_at_exit(self)
        out = {}
        for name in self.names:
            self.renderer.update_scene(data, name, self.option)
            out[name] = np.ascontiguousarray(self.renderer.render().transpose(2, 0, 1))
        return out

    def _renderer(self) -> Any:
        import mujoco
        from mujoco import gl_context

        if os.environ.get("MUJOCO_GL") != getattr(gl_context, "_MUJOCO_GL", None):
            # Somebody imported mujoco before setup_mujoco() chose the backend, which is read at import.
            importlib.reload(gl_context)
        try:
            renderer = mujoco.Renderer(self.model, self.size, self.size)
        except Exception as error:  # PyOpenGL and MuJoCo raise a dozen kinds
            backend = os.environ.get("MUJOCO_GL", "unset")
            raise UserError(
                f"MuJoCo cannot render off screen (MUJOCO_GL={backend}: {error}): install libegl1 or libosmesa6, "
                "or set MUJOCO_GL=egl or osmesa"
            ) from error
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            renderer.scene.flags[flag] = 0
        return renderer

    def close(self) -> None:
        """Free the context."""
        if self.renderer is not None:
            self.renderer.close()
            self.renderer = None
