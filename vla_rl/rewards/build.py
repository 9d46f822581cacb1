"""The reward of a configuration, around its environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vla_rl.config import resolve_path, typed
from vla_rl.environment import VlaVectorEnv
from vla_rl.errors import UserError

OWN = ("kind", "path", "address", "token_file", "references", "device")
"""Settings that are not ``VlacConfig``'s."""


def judges(reward: Any) -> bool:
    """Whether a configuration's ``reward`` is a critic's."""
    if not reward or reward.get("kind", "success") == "success":
        return False
    if reward.kind != "vlac":
        raise UserError(f"reward.kind={reward.kind}: choose from success, vlac")
    return True


def environment_settings(config: Any) -> dict[str, Any]:
    """What the environment of training needs beside its own configuration: to go on after success, where a critic judges."""
    return {"after_success": None} if judges(config.get("reward")) and "after_success" in config.env else {}


def rewarded(env: VlaVectorEnv, reward: Any) -> VlaVectorEnv:
    """``env`` with the reward of a configuration; ``env`` itself where that is its own success.

    Raises:
        UserError: no critic, or one that does not fit the environment.
    """
    if not judges(reward):
        return env
    from vla_rl.critic.remote import RemoteCritic
    from vla_rl.critic.trajectories import first_successes, read_trajectories
    from vla_rl.rewards.vlac import JudgedEnv, VlacConfig

    if bool(reward.get("path")) == bool(reward.get("address")):
        raise UserError(
            "set one of reward.path, the folder of a critic (vla-rl critic train), and reward.address, its server"
        )
    settings = {k: v for k, v in reward.items() if k not in OWN}
    if reward.get("address"):
        critic: Any = RemoteCritic(reward.address, token_file=reward.get("token_file"))
    else:
        critic = _from_folder(resolve_path(reward.path), reward)
    shown = [resolve_path(d) for d in reward.get("references") or []]
    references = read_trajectories(shown, reward.get("camera")) if shown else []
    looked = {task: critic.refer(t) for task, t in first_successes(references).items()}
    return JudgedEnv(env, critic, typed(VlacConfig, settings, "reward."), looked)


def _from_folder(folder: Path, reward: Any) -> Any:
    """A critic of ours, or any of LeRobot's reward models."""
    from vla_rl.critic.model import NOTES, Critic

    device = reward.get("device") or "cpu"
    if not (folder / NOTES).is_file() and (folder / "config.json").is_file():
        from lerobot.configs.rewards import RewardModelConfig

        from vla_rl.critic.lerobot_reward import RewardModelCritic

        kind = json.loads((folder / "config.json").read_text()).get("type")
        if kind in RewardModelConfig.get_known_choices():
            return RewardModelCritic.load(folder, device)
    return Critic.load(folder, device)
