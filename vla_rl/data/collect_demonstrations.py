"""Demonstrations for a learner: read from a data set, or made on the spot by a scripted expert."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.config import build, resolve_path
from vla_rl.data.dataset import Episode as Recorded
from vla_rl.environment import VlaVectorEnv
from vla_rl.errors import UserError
from vla_rl.policies.base import Policy
from vla_rl.policies.shadowed import Shadowed
from vla_rl.rollout.collector import Collector, Episode


def demonstrations_of(config: Any, env: VlaVectorEnv, algorithm: Any) -> int:
    """Fill ``algorithm``'s demonstration buffer; returns the number of episodes.

    Args:
        config: ``path`` (LeRobotDataset folder) or ``expert`` (a ``_target_``), ``episodes``, ``seed``;
            None or ``episodes: 0`` for no demonstrations.
        env: where an expert demonstrates.
        algorithm: its ``policy.base`` labels every frame with what it would have done.
    """
    if not config or not config.get("episodes"):
        return 0
    base = algorithm.policy.base
    if config.get("path"):
        from vla_rl.data.dataset import dataset_info, load_episodes
        from vla_rl.data.demonstrations import demonstration_frames

        path = resolve_path(config.path)
        info = dataset_info(path)
        count = min(int(config.episodes), info["total_episodes"])
        key = env.shaping_key
        if key and key not in info["features"]:
            raise UserError(
                f"demonstrations.path={path} has no {key}, by whose pictures reward.shaping pays for progress: record them "
                "with env.cameras=[...] (vla-rl record), or set reward.shaping=none"
            )
        cameras: list[str] = list(dict.fromkeys([*base.spec.image_keys, *([key] if key else [])]))
        episodes = load_episodes(path, episodes=range(count), images=cameras)
        if key:
            for episode in episodes:
                pay(episode, env, key)
        frames, _ = demonstration_frames(episodes, base, env.env_spec)
        algorithm.add_demonstrations(frames)
        return len(episodes)
    if not config.get("expert"):
        raise UserError(
            "demonstrations need a path (LeRobotDataset) or an expert; or set demonstrations.episodes=0"
        )
    expert = build(config.expert, env=env)
    return show(env, expert, base, algorithm, int(config.episodes), int(config.seed))


def pay(episode: Recorded, env: VlaVectorEnv, key: str) -> None:
    """Add to a recorded episode's rewards what ``env`` would have paid for its progress, by the pictures of ``key``."""
    if "next.reward" in episode.data:
        film, last = episode.data[key], episode.final.get(key, episode.data[key][-1])
        shaping = env.shaping_of(torch.cat([film, last[None]]), episode.task, bool(episode.success))
        episode.data["next.reward"] = episode.data["next.reward"] + shaping


def show(env: VlaVectorEnv, expert: Policy, base: Policy, algorithm: Any, episodes: int, seed: int) -> int:
    """Let ``expert`` act until ``episodes`` of the seeds from ``seed`` on have succeeded (or three times as many begun)."""
    parts: dict[int, list[TensorDict]] = defaultdict(list)
    kept = 0

    def sink(frames: TensorDict, rows: Tensor) -> None:
        for i, row in enumerate(rows.tolist()):
            parts[row].append(frames[i : i + 1])

    def ended(episode: Episode) -> None:
        nonlocal kept
        frames = parts.pop(episode.row)
        if episode.success and kept < episodes:
            algorithm.add_demonstrations(torch.cat(frames))  # type: ignore[arg-type]
            kept += 1

    collector = Collector(env, Shadowed(expert, base), lambda n, _: seed + n, sink=sink, on_episode=ended)
    collector.begin()
    while kept < episodes:
        collector.step()
        if collector.episodes_started > 3 * episodes + env.num_envs:
            raise UserError(
                f"the expert succeeded in {kept} of {collector.episodes_started} episodes: lower its noise"
            )
    return kept
