"""The one evaluation code: used while training, by ``vla-rl eval`` and by the demo."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from vla_rl.environment import VlaVectorEnv
from vla_rl.policies.base import Policy
from vla_rl.rollout.collector import Collector, Episode
from vla_rl.stats import summary


@dataclass
class Evaluation:
    """Finished evaluation episodes, in order of task and seed."""

    episodes: list[Episode]
    videos: dict[tuple[str, int], list[torch.Tensor]] = field(default_factory=dict)
    """(task id, seed) -> [T] images [3, H, W] uint8, for the episodes that were filmed."""

    def summary(self) -> dict:
        """Success as ``{"successes", "episodes", "rate", "wilson95", "per_task"}``."""
        return summary([e.success for e in self.episodes], [e.task_id for e in self.episodes])


def evaluate(
    env: VlaVectorEnv,
    policy: Policy,
    episodes: int,
    seed: int,
    *,
    film: int = 0,
    progress: Callable[[int, int], None] | None = None,
    deterministic: bool = True,
) -> Evaluation:
    """Run ``policy`` on fixed seeds, without exploration.

    Each task of a multi-task batch gets ``episodes / tasks`` episodes (rounded up) with seeds ``seed``,
    ``seed + 1``, ...: the same seeds whatever the number of environments. Episodes are counted in the order they
    *began*: counting those that finish first would favour successes, which are shorter.

    Args:
        env: the batch; its rows are reset.
        policy: who acts.
        episodes: how many in all.
        seed: first environment seed; also seeds torch for the policy's own sampling, which is restored after.
        film: episodes per task to keep images of (renders those rows at every step).
        progress: called with (finished, wanted).
        deterministic: False = with the policy's exploration, or the disturbance that a scripted expert is given.
    """
    ids = env.own_task_ids()
    per_task = -(-episodes // len(set(ids)))
    begun: dict[str, int] = defaultdict(int)

    def next_seed(_: int, row: int) -> int:
        begun[ids[row]] += 1
        return seed + begun[ids[row]] - 1

    wanted = {(task, seed + i) for task in set(ids) for i in range(per_task)}
    done: dict[tuple[str, int], Episode] = {}
    videos: dict[tuple[str, int], list[torch.Tensor]] = {}
    collector = Collector(env, policy, next_seed)
    rng = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed)
        collector.begin()
        while len(done) < len(wanted):
            # Whose episodes are all there already plays on, unseen.
            playing = zip(ids, collector.episode_seed, strict=True)
            collector.idle = torch.tensor([key not in wanted for key in playing])
            _film(env, collector, videos, seed, film)
            for episode in collector.step(deterministic=deterministic):
                key = (episode.task_id, episode.seed)
                if key in wanted and not episode.interrupted:
                    done[key] = episode
                elif key in wanted:
                    wanted.discard(key)
            if progress is not None:
                progress(len(done), len(wanted))
    finally:
        torch.random.set_rng_state(rng)
    return Evaluation([done[key] for key in sorted(done)], videos)


def _film(env: VlaVectorEnv, collector: Collector, videos: dict, seed: int, film: int) -> None:
    """Keep this step's picture of the rows whose episode is filmed."""
    if not film or not env.env_spec.cameras:
        return
    ids = env.task_ids()
    rows = [r for r in range(env.num_envs) if seed <= collector.episode_seed[r] < seed + film]
    if not rows:
        return
    key = next(iter(env.env_spec.cameras))
    for row, image in zip(rows, env.look(rows)[key], strict=True):
        videos.setdefault((ids[row], collector.episode_seed[row]), []).append(image.clone())
