"""Record a policy (expert, person or learned) in an environment as a LeRobotDataset v3.

Episode i is played from seed + i, whatever the number of environments, and episodes are stored in seed
order: the data set is a function of (policy, seed) for a policy without randomness of its own. Of several
tasks, episode i plays the (i mod K)-th. Recording is atomic and resumable, see ``vla_rl.data.spool``.

Steps that a person has rewound on a robot (``info["rewound"]``) are dropped, and the episode goes on from where the arm
is again: what is cloned is a way that leads from the beginning to the end, without the mistake and without the way back.
Replay of a learner is cut there instead (``vla_rl.data.replay.ReplayBuffer.forget``): the scene is not rewound, so a
value must not be carried across the seam.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from vla_rl.data.attempts import Attempts, Progress
from vla_rl.data.build import MARKER, build_dataset
from vla_rl.data.live import Live
from vla_rl.data.spool import Spool, check_settings, disk_errors
from vla_rl.environment import VlaVectorEnv, checked_action
from vla_rl.errors import UserError
from vla_rl.keys import ACTION, ENV_STATE, INTERVENTION, STATE, TASK, image_key
from vla_rl.policies.base import Policy, check_compatible, pictured
from vla_rl.policies.intervened import Intervened


def record(
    env: VlaVectorEnv,
    policy: Policy,
    episodes: int,
    out: Path | str,
    *,
    seed: int = 0,
    only_success: bool = False,
    cameras: Sequence[str] | None = None,
    deterministic: bool = False,
    progress: Progress | None = None,
    policy_id: str | None = None,
    max_attempts: int | None = None,
    journal: bool = False,
) -> dict[str, Any]:
    """Record ``episodes`` episodes into a LeRobotDataset v3 folder.

    Killed at any moment it loses at most the episodes being played; the same call continues. A finished
    recording with the same settings is returned as it is.

    Args:
        env: B environments.
        policy: gives one action [B, A] a step (a chunked one is run open loop over its whole chunk).
        episodes: how many to keep.
        out: folder to create; episodes being recorded lie in ``<out>.recording``.
        seed: of the first attempt; attempt i is played from ``seed + i``.
        only_success: keep successes only: of each task the first ones in seed order, as many as its share.
        cameras: names to record; None = all, () = none.
        deterministic: passed to ``policy.act``.
        progress: called after each finished episode with ``{"episodes", "total", "attempts", "successes",
            "frames"}``.
        policy_id: what tells this policy from another (a path, a noise level), compared on resuming.
        max_attempts: give up after so many (default 20 per wanted episode, at least 100).
        journal: keep every finished step of the episodes being played (a robot's time is dear): an episode that was cut
            is stored up to there, as truncated, when the recording is continued.

    Returns:
        ``{"path", "episodes", "frames", "attempts", "successes", "success_rate", "per_task", "seconds",
        "resumed_episodes"}``; ``successes`` among all ``attempts`` up to the last kept episode.

    Raises:
        UserError: a policy that does not fit, an unknown camera, ``out`` taken or begun with other settings,
            no space left, too few successes.
    """
    out = Path(out)
    policy = stepwise(policy)
    spec = env.env_spec
    settings = recording_settings(
        env, policy, episodes, seed, only_success, cameras, deterministic, policy_id
    )
    finished = finished_recording(out, settings)
    if finished is not None:
        return finished
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    spool = Spool(out, settings)
    with contextlib.ExitStack() as stack:
        stack.callback(spool.close)
        attempts = Attempts(spool, settings, max_attempts, progress)
        live = Live(spool.folder / "live") if journal else None
        if live is not None:
            stack.callback(live.close)
            _adopt(live, attempts)
        started = time.monotonic()
        if not attempts.complete:
            # A policy that samples must not repeat its noise after a resume.
            torch.manual_seed(seed + len(attempts.done))
            _play(env, policy, attempts, list(settings["cameras"]), deterministic, live)
        summary = attempts.summary(out) | {"seconds": time.monotonic() - started}
        build_dataset(spool, attempts.kept(), settings, summary, spec)
        spool.publish()
        return summary


def _adopt(live: Live, attempts: Attempts) -> None:
    """Store what a cut left of episodes: all steps whose outcome was observed."""
    for attempt, task, frames in live.left():
        if attempt in attempts.done or len(frames) < 2:
            continue
        *frames, last = frames  # of the last step the observation before it is known, and closes the episode
        final = {key: value for key, value in last.items() if key.startswith("observation.")}
        frames[-1] |= {"next.done": np.array([True]), "next.truncated": np.array([True])}
        attempts.finish(attempt, _stack(frames, final, task, attempts.settings["seed"] + attempt))


def stepwise(policy: Policy) -> Policy:
    """``policy``, or its open-loop execution when it gives chunks."""
    if not policy.spec.chunk_length:
        return policy
    from vla_rl.policies.open_loop import OpenLoop

    return OpenLoop(policy, horizon=policy.spec.chunk_length)


def recording_settings(
    env: VlaVectorEnv,
    policy: Policy,
    episodes: int,
    seed: int,
    only_success: bool = False,
    cameras: Sequence[str] | None = None,
    deterministic: bool = False,
    policy_id: str | None = None,
) -> dict[str, Any]:
    """What the data set is a function of, as JSON; checks all of it before anything slow starts."""
    spec, tasks = env.env_spec, list(dict.fromkeys(env.task_ids()))
    check_compatible(policy.spec, spec)
    if episodes < 1:
        raise UserError(f"episodes={episodes}: record at least one")
    if abs(spec.rate_hz - round(spec.rate_hz)) > 1e-6:
        raise UserError(f"{spec.id} runs at {spec.rate_hz} Hz; LeRobot data sets need a whole number of Hz")
    keys = list(spec.cameras) if cameras is None else [image_key(c) for c in cameras]
    for key in keys:
        if key not in spec.cameras:
            have = ", ".join(spec.cameras) or "none"
            raise UserError(f"camera {key} is not in environment {spec.id}, which has: {have}")
    return {
        "format": 1,
        "env": spec.id,
        "tasks": tasks,
        "fps": round(spec.rate_hz),
        "state_dim": spec.state_dim,
        "env_state_dim": spec.env_state_dim,
        "action_low": list(spec.action_low),
        "action_high": list(spec.action_high),
        "cameras": {key: list(spec.cameras[key]) for key in keys},
        "max_episode_steps": spec.max_episode_steps,
        "policy": policy_id or type(policy).__name__,
        "episodes": int(episodes),
        "seed": int(seed),
        "only_success": bool(only_success),
        "deterministic": bool(deterministic),
    } | ({"columns": [INTERVENTION]} if isinstance(policy, Intervened) else {})


def finished_recording(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The summary when ``out`` already is this very recording; None when it is free to be created."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise UserError(f"{out} is a file: choose another out folder")
    if (out / MARKER).is_file():
        marker = json.loads((out / MARKER).read_text())
        check_settings(marker["settings"], settings, out)
        # A kill between publishing and clean-up leaves the work folder behind.
        shutil.rmtree(out.with_name(out.name + ".recording"), ignore_errors=True)
        return marker["summary"] | {"path": str(out), "resumed_episodes": marker["summary"]["episodes"]}
    if any(out.iterdir()):
        raise UserError(f"{out} exists and is not a recording of these settings: choose another out folder")
    return None


def _play(
    env: VlaVectorEnv,
    policy: Policy,
    attempts: Attempts,
    cameras: list[str],
    deterministic: bool,
    live: Live | None,
) -> None:
    """Step the environments until the attempts are complete."""
    spec, size = env.env_spec, env.num_envs
    low, high = torch.tensor(spec.action_low), torch.tensor(spec.action_high)
    state_keys = [STATE] + ([ENV_STATE] if spec.env_state_dim else [])
    features = attempts.settings.get("columns", [])
    first_seed = attempts.settings["seed"]
    task_ids = env.task_ids()
    playing: list[int | None] = [attempts.next_attempt(task_ids[row]) for row in range(size)]
    seeds = [first_seed + (a if a is not None else 0) for a in playing]  # idle rows are stepped, not stored
    frames: list[list[dict[str, np.ndarray]]] = [[] for _ in range(size)]
    observation, _ = env.reset(seed=seeds)
    state = begun(policy, policy.initial_state(size), range(size), seeds)
    while True:
        active = [row for row in range(size) if playing[row] is not None]
        if not active:
            raise attempts.shortfall()
        needs = policy.needs_images(state).tolist() if policy.spec.image_keys else [False] * size
        rows = [r for r in range(size) if needs[r] or (cameras and playing[r] is not None)]
        images = env.look(rows) if rows else {}
        seen = pictured(observation, policy.spec.image_keys, images, rows, spec, size)
        output, state = policy.act(seen, state, deterministic=deterministic)
        action = torch.minimum(torch.maximum(checked_action(output["action"], spec, size), low), high)
        for row in active:
            frame = {key: copied(observation[key][row]) for key in state_keys}
            frame |= {key: copied(images[key][rows.index(row)]) for key in cameras}
            frame[ACTION] = copied(action[row])
            if INTERVENTION in features:
                frame[INTERVENTION] = np.array([bool(output["intervention"][row])])
            frames[row].append(frame)
        tasks = list(observation[TASK])
        observation, reward, terminated, truncated, info = env.step(action)
        done = (terminated | truncated).tolist()
        rewound = info["rewound"].tolist() if "rewound" in info else [0] * size
        for row in active:
            attempt = playing[row]
            if rewound[row]:
                del frames[row][-rewound[row] :]
                state = begun(policy, state, [row], seeds)  # a chunk planned before is stale
                if live is not None and attempt is not None:
                    live.forget(attempt, rewound[row] - 1)  # the last one is not in it yet
                continue
            last = frames[row][-1]
            last |= outcome(row, reward, terminated, truncated, info)
            if live is not None and attempt is not None:
                live.step(attempt, tasks[row], last)
        if not any(done):
            continue
        ended = [row for row in active if done[row]]
        final_images = env.look(ended) if cameras and ended else {}
        restarted, discarded = info.get("worker_restarted"), info.get("discarded")
        for i, row in enumerate(ended):
            attempt = playing[row]
            assert attempt is not None
            if restarted is not None and bool(restarted[row]):
                attempts.retry(attempt)
                continue
            if discarded is not None and bool(discarded[row]):
                attempts.again(attempt)
                if live is not None:
                    live.end(attempt)
                continue
            final = {key: copied(observation[key][row]) for key in state_keys}
            final |= {key: copied(final_images[key][i]) for key in cameras}
            attempts.finish(attempt, _stack(frames[row], final, tasks[row], first_seed + attempt))
            if live is not None:
                live.end(attempt)
        if attempts.complete:
            return
        for row in ended:
            playing[row] = attempts.next_attempt(task_ids[row])
            frames[row] = []
            seeds[row] = first_seed + (playing[row] or 0)
        mask = torch.tensor(done)
        observation, _ = env.reset(seed=seeds, options={"reset_mask": mask})
        state = begun(policy, state, mask.nonzero().flatten().tolist(), seeds)


def begun(policy: Policy, state: TensorDict, rows: Iterable[int], seeds: list[int]) -> TensorDict:
    """``state`` with the policy's state of ``rows`` begun anew, each drawn under its episode's seed.

    So a policy whose randomness starts from its state (a noise key) is a function of the seed as well.
    """
    state = state.clone()
    with torch.random.fork_rng(devices=[]):
        for row in rows:
            torch.manual_seed(seeds[row])
            state[row : row + 1] = policy.initial_state(1)
    return state


def outcome(
    row: int, reward: torch.Tensor, terminated: torch.Tensor, truncated: torch.Tensor, info: dict[str, Any]
) -> dict[str, np.ndarray]:
    """What came of a row's step, as columns of its frame."""
    over, cut = bool(terminated[row]), bool(truncated[row])
    return {
        "next.reward": np.array([float(reward[row])], np.float32),
        "next.success": np.array([bool(info["success"][row])]),
        "next.done": np.array([over or cut]),
        "next.truncated": np.array([cut and not over]),
    }


def copied(value: torch.Tensor) -> np.ndarray:
    """A numpy copy: environments may reuse their (shared) memory at the next step."""
    return value.detach().cpu().numpy().copy()


def _stack(
    frames: list[dict[str, np.ndarray]], final: dict[str, np.ndarray], task: str, seed: int
) -> dict[str, np.ndarray]:
    """One episode as arrays [T, ...]."""
    arrays = {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}
    arrays |= {f"final/{key}": value for key, value in final.items()}
    arrays["seed"] = np.full((len(frames), 1), seed, np.int64)
    arrays["success"] = np.asarray(arrays["next.success"].any())
    arrays[TASK] = np.asarray(task)
    return arrays


def replay(env: VlaVectorEnv, path: Path | str, episodes: Sequence[int] | None = None) -> list[bool]:
    """Execute recorded actions from the recorded seeds.

    Args:
        env: the environment that was recorded, any number of rows for each of its tasks.
        path: the data set.
        episodes: which; None = all.

    Returns:
        Success of each episode in the simulator now, comparable with the recorded ``next.success``.
    """
    from vla_rl.data.dataset import load_episodes

    recorded = load_episodes(path, episodes=episodes, images=False)
    task_ids = env.task_ids()
    queues: list[list[int]] = [[] for _ in range(env.num_envs)]  # positions in ``recorded`` for each row
    for position, episode in enumerate(recorded):
        if episode.seed is None:
            raise UserError(f"{path} has no column 'seed': only recordings of a simulator can be replayed")
        rows = [r for r in range(env.num_envs) if episode.task_id in (None, task_ids[r])]
        if not rows:
            have = ", ".join(dict.fromkeys(task_ids))
            raise UserError(f"{path} plays {episode.task_id}, the environment only {have}: add it to env.ids")
        min((queues[r] for r in rows), key=len).append(position)
    results = [False] * len(recorded)
    step, seeds = [0] * env.num_envs, [recorded[q[0] if q else 0].seed for q in queues]
    env.reset(seed=seeds)
    while any(queues):
        action = torch.zeros(env.num_envs, env.env_spec.action_dim)
        for row, queue in enumerate(queues):
            if queue:
                action[row] = recorded[queue[0]].data[ACTION][step[row]]
        _, _, terminated, truncated, info = env.step(action)
        mask = terminated | truncated
        for row, queue in enumerate(queues):
            if queue:
                step[row] += 1
                results[queue[0]] |= bool(info["success"][row])
                if mask[row] or step[row] == recorded[queue[0]].length:
                    queue.pop(0)
                    mask[row], step[row] = True, 0
                    seeds[row] = recorded[queue[0]].seed if queue else seeds[row]
        if mask.any() and any(queues):
            env.reset(seed=seeds, options={"reset_mask": mask})
    return results
