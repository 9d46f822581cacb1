"""robosuite as it comes, each environment in a process of gymnasium's ``AsyncVectorEnv``: the yardstick of ``vla-rl bench simulators``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from vla_rl.bench.peers.serve import serve


def stock(id: str, limit: int) -> Any:
    """One environment with the controller and observations that ours has."""
    import gymnasium
    import numpy as np
    import robosuite

    class Stock(gymnasium.Env):
        def __init__(self) -> None:
            self.env = robosuite.make(
                id,
                robots="Panda",
                controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
                has_renderer=False,
                has_offscreen_renderer=False,
                use_camera_obs=False,
                control_freq=20,
                horizon=limit,
                hard_reset=False,
            )
            low, high = self.env.action_spec
            self.action_space = gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32))
            size = len(self._flat(self.env.reset()))
            self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)

        def _flat(self, seen: Any) -> Any:
            return np.concatenate([seen["robot0_proprio-state"], seen["object-state"]]).astype(np.float32)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            return self._flat(self.env.reset()), {}

        def step(self, action: Any) -> Any:
            seen, reward, done, _ = self.env.step(action)
            success = bool(self.env._check_success())
            return self._flat(seen), float(reward), success, done and not success, {"success": success}

    return Stock()


def make(settings: dict[str, Any]) -> Callable[[int], None]:
    """``settings``: id, num_envs, limit. Counts control steps of all."""
    import gymnasium
    import numpy as np

    count = settings["num_envs"]
    one = partial(stock, settings["id"], settings["limit"])
    env = gymnasium.vector.AsyncVectorEnv([one] * count)
    generator = np.random.default_rng(0)
    env.reset(seed=0)

    def work(steps: int) -> None:
        for _ in range(steps // count):
            env.step(generator.uniform(-1, 1, (count, 7)).astype(np.float32))

    return work


if __name__ == "__main__":
    serve(make)
