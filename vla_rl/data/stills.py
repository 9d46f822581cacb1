"""Pictures of many scenes and where things are in them, for a vision tower's warm start: a few steps of each episode.

Neighbouring steps of an episode look alike, and what a tower has to learn is to see scenes that it has not seen: of 600 scenes three
pictures each teach it more than of 60 scenes thirty, and cost no more rendering. The data set's episodes are reels: stills of one
task, one scene after the other, with the action that the policy took there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla_rl.data.build import build_dataset
from vla_rl.data.record import begun, copied, finished_recording, outcome, recording_settings, stepwise
from vla_rl.data.spool import Spool, disk_errors
from vla_rl.environment import VlaVectorEnv, checked_action
from vla_rl.errors import UserError
from vla_rl.keys import ACTION, ENV_STATE, STATE, TASK
from vla_rl.policies.base import Policy, pictured

REEL = 32
"""Scenes per reel: what a kill can lose of each task."""


def record_stills(
    env: VlaVectorEnv,
    policy: Policy,
    scenes: int,
    out: Path | str,
    *,
    stills: int,
    within: int,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Play the beginnings of ``scenes`` episodes and keep ``stills`` steps of each.

    Scene i begins from seed + i and plays task i mod K; the k-th still is of a step drawn from the k-th of as many equal parts of the
    first ``within`` steps, if the episode gets there. Killed, it loses at most a reel of each task.

    Args:
        env: B environments with cameras, all of which are recorded.
        policy: who plays.
        scenes: episodes begun, all tasks together.
        out: folder of the LeRobotDataset to create.
        stills: steps kept of each.
        within: steps from which they are drawn.
        seed: of the first scene.
        progress: called with the number of scenes that are done.

    Returns:
        ``{"path", "episodes" (reels), "frames", "scenes", "seconds"}``.

    Raises:
        UserError: numbers that do not fit, no camera, ``out`` taken or begun with other settings, no space left, or no episode
            that lasts long enough.
    """
    if not 1 <= stills <= within:
        raise UserError(f"stills={stills} stills_within={within}: at least 1, and not more stills than steps")
    if not env.env_spec.cameras:
        raise UserError("stills are pictures: give the environment cameras (env.cameras)")
    out, policy = Path(out), stepwise(policy)
    settings = recording_settings(env, policy, scenes, seed) | {"stills": stills, "stills_within": within}
    finished = finished_recording(out, settings)
    if finished is not None:
        return finished
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    spool, started = Spool(out, settings), time.monotonic()
    try:
        reels = _Reels(spool, settings)
        if not reels.complete:
            _play(env, policy, reels, settings, progress or (lambda _: None))
        kept = [reel for reel, there in sorted(spool.done().items()) if there]
        if not kept:
            raise UserError(
                f"no episode lasted until its first still: lower stills_within={within} or raise stills"
            )
        frames = sum(len(spool.read(reel, (ACTION,))[ACTION]) for reel in kept)
        summary = {
            "path": str(out),
            "episodes": len(kept),
            "frames": frames,
            "scenes": scenes,
            "seconds": time.monotonic() - started,
        }
        build_dataset(spool, kept, settings, summary, env.env_spec)
        spool.publish()
        return summary
    finally:
        spool.close()


class _Reels:
    """Which scenes are still to be played, and what has been seen of them. Reel r is of task r mod K."""

    def __init__(self, spool: Spool, settings: dict[str, Any]) -> None:
        self.spool, self.tasks = spool, list(settings["tasks"])
        count, total = len(self.tasks), settings["episodes"]
        done = spool.done()
        self.waiting: list[deque[int]] = [deque() for _ in self.tasks]
        self.left: dict[int, set[int]] = {}
        for scene in range(total):
            reel = self.reel_of(scene)
            if reel not in done:
                self.waiting[scene % count].append(scene)
                self.left.setdefault(reel, set()).add(scene)
        self.done = total - sum(len(queue) for queue in self.waiting)
        self.seen: dict[int, list[dict[str, np.ndarray]]] = {}

    def reel_of(self, scene: int) -> int:
        count = len(self.tasks)
        return scene // count // REEL * count + scene % count

    @property
    def complete(self) -> bool:
        return not self.left

    def next(self, task_id: str) -> int | None:
        """The next scene of a row that plays ``task_id``."""
        queue = self.waiting[self.tasks.index(task_id)]
        return queue.popleft() if queue else None

    def finish(self, scene: int, frames: list[dict[str, np.ndarray]], task: str) -> None:
        """A scene is over; its reel is written with the last of them, in the order of scenes."""
        self.done += 1
        reel = self.reel_of(scene)
        self.seen[scene] = frames
        self.left[reel].remove(scene)
        if self.left[reel]:
            return
        del self.left[reel]
        mine = sorted(s for s in self.seen if self.reel_of(s) == reel)
        stills = [frame for s in mine for frame in self.seen.pop(s)]
        arrays = {key: np.stack([frame[key] for frame in stills]) for key in stills[0]} if stills else None
        self.spool.write(reel, None if arrays is None else arrays | {TASK: np.asarray(task)})


def _play(
    env: VlaVectorEnv,
    policy: Policy,
    reels: _Reels,
    settings: dict[str, Any],
    progress: Callable[[int], None],
) -> None:
    spec, size = env.env_spec, env.num_envs
    low, high = torch.tensor(spec.action_low), torch.tensor(spec.action_high)
    state_keys = [STATE] + ([ENV_STATE] if spec.env_state_dim else [])
    cameras, first_seed, ids = list(settings["cameras"]), settings["seed"], env.task_ids()
    scene = [reels.next(ids[row]) for row in range(size)]
    seeds = [first_seed + (s or 0) for s in scene]  # idle rows are stepped, not looked at
    times = [_times(seed, settings) for seed in seeds]
    frames: list[list[dict[str, np.ndarray]]] = [[] for _ in range(size)]
    length = [0] * size
    observation, _ = env.reset(seed=seeds)
    state = begun(policy, policy.initial_state(size), range(size), seeds)
    while not reels.complete:
        looking = [row for row in range(size) if scene[row] is not None and length[row] in times[row]]
        asked = policy.needs_images(state).tolist() if policy.spec.image_keys else [False] * size
        rows = [row for row in range(size) if asked[row] or row in looking]
        images = env.look(rows) if rows else {}
        seen = pictured(observation, policy.spec.image_keys, images, rows, spec, size)
        output, state = policy.act(seen, state)
        action = torch.minimum(torch.maximum(checked_action(output["action"], spec, size), low), high)
        for row in looking:
            frame = {key: copied(observation[key][row]) for key in state_keys}
            frame |= {key: copied(images[key][rows.index(row)]) for key in cameras} | {
                ACTION: copied(action[row])
            }
            frames[row].append(frame | {"seed": np.array([seeds[row]], np.int64)})
        tasks = list(observation[TASK])
        observation, reward, terminated, truncated, info = env.step(action)
        ended = terminated | truncated
        for row in looking:
            frames[row][-1] |= outcome(row, reward, terminated, truncated, info)
        length = [steps + 1 for steps in length]
        over = torch.tensor([bool(ended[row]) or length[row] > max(times[row]) for row in range(size)])
        if not over.any():
            continue
        for row in over.nonzero().flatten().tolist():
            mine = scene[row]
            if mine is not None:
                reels.finish(mine, frames[row], tasks[row])
            scene[row] = reels.next(ids[row])
            seeds[row] = first_seed + (scene[row] or 0)
            times[row], frames[row], length[row] = _times(seeds[row], settings), [], 0
        progress(reels.done)
        observation, _ = env.reset(seed=seeds, options={"reset_mask": over})
        state = begun(policy, state, over.nonzero().flatten().tolist(), seeds)


def _times(seed: int, settings: dict[str, Any]) -> list[int]:
    """Steps of a scene's stills, one out of each of equal parts."""
    edges = np.linspace(0, settings["stills_within"], settings["stills"] + 1).round().astype(int)
    draw = np.random.default_rng(seed)
    return [int(draw.integers(a, b)) for a, b in zip(edges, edges[1:], strict=False)]
