"""Meta-World as it comes: its camera rendered at every step in MuJoCo's stock quality.

A yardstick of ``vla-rl bench collector``; not meant for training.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sim.metaworld import UPSIDE_DOWN, MetaWorldEnv
from vla_rl.keys import image_key


class StockMetaWorldEnv(MetaWorldEnv):
    """The same tasks, observations and actions as ``MetaWorldEnv``, pictures as ``render()`` gives them.

    Args:
        id: environment id.
        image_size: height and width of the stock camera.
        camera: its name.
        max_episode_steps: time limit.
    """

    def __init__(
        self, id: str, *, image_size: int = 128, camera: str = "corner2", max_episode_steps: int | None = 200
    ) -> None:
        super().__init__(id, cameras=(), max_episode_steps=max_episode_steps)
        from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

        stock, model = type(self.env)(), self.env.model
        model.vis.quality.offsamples = stock.model.vis.quality.offsamples  # lowered for our own cameras
        model.vis.quality.shadowsize = stock.model.vis.quality.shadowsize
        stock.close()
        self.camera, size = camera, image_size
        self.renderer = MujocoRenderer(model, self.env.data, None, size, size, camera_name=camera)
        self.spec = replace(self.spec, cameras={image_key(camera): (size, size)})

    def reset(self, seed: int | None) -> tuple[dict[str, np.ndarray], str]:
        """Begin the episode of ``seed``, with its picture."""
        begun = super().reset(seed)
        self._render()
        return begun

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, bool]:
        """One control step, with its picture."""
        result = super().step(action)
        self._render()
        return result

    def look(self) -> dict[str, np.ndarray]:
        """The picture of the last step: it has been rendered anyway."""
        return {image_key(self.camera): self.picture}

    def close(self) -> None:
        """Free the renderer and the scene."""
        self.renderer.close()
        super().close()

    def _render(self) -> None:
        rgb = np.asarray(self.renderer.render("rgb_array")).transpose(2, 0, 1)
        self.picture = np.ascontiguousarray(rgb[:, ::-1, ::-1] if self.camera in UPSIDE_DOWN else rgb)
