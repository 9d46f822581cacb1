"""Conformance of an environment with ``vla_rl.environment.VlaVectorEnv``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vla_rl.environment import EnvSpec, Observation, VlaVectorEnv
from vla_rl.errors import NonFiniteError, UserError
from vla_rl.keys import ENV_STATE, IMAGES, STATE, TASK

STEPS = 4  # of each short episode that is played twice


def check_env(make_env: Callable[[], VlaVectorEnv], seed: int = 0) -> None:
    """Play an environment and assert that it keeps its contract.

    Two or more rows let partial resets be checked too; a short ``max_episode_steps`` makes it quick.

    Args:
        make_env: builds the environment; called twice.
        seed: of the first episode.

    Raises:
        AssertionError: what is broken, in words.
    """
    env = make_env()
    try:
        _check_spec(env.env_spec, env.num_envs, env.task_ids())
        _check_errors_before_step(env, seed)
        first = _play(env, seed)
        _check_same(first, _play(env, seed), "the same seed, played again in the same environment")
        _check_seed_matters(env, seed)
        _check_look(env, seed)
        if env.num_envs > 1:
            _check_partial_reset(env, seed)
        _check_truncation(env, seed)
    finally:
        env.close()
    env.close()  # must be harmless
    fresh = make_env()
    try:
        _check_same(first, _play(fresh, seed), "the same seed, played in a fresh environment")
    finally:
        fresh.close()


def _check_spec(spec: EnvSpec, rows: int, task_ids: list[str]) -> None:
    assert rows >= 1, f"num_envs is {rows}"
    assert len(spec.action_low) == len(spec.action_high) > 0, "action_low and action_high differ in length"
    assert all(a < b for a, b in zip(spec.action_low, spec.action_high, strict=True)), "empty action bounds"
    assert torch.isfinite(torch.tensor(spec.action_low + spec.action_high)).all(), (
        "action bounds are not finite"
    )
    assert spec.state_dim > 0, "state_dim is 0: proprioception is needed"
    assert spec.max_episode_steps > 0 and spec.rate_hz > 0, "max_episode_steps and rate_hz must be positive"
    assert spec.tasks and all(isinstance(t, str) and t for t in spec.tasks), (
        "tasks must be non-empty sentences"
    )
    for key in spec.cameras:
        assert key.startswith(IMAGES), f"camera key {key} does not begin with {IMAGES}"
    for names, count, what in (
        (spec.state_names, spec.state_dim, "state_names"),
        (spec.action_names, spec.action_dim, "action_names"),
    ):
        assert not names or len(names) == count, f"{what} has {len(names)} entries for {count} numbers"
    assert len(task_ids) == rows, f"task_ids() has {len(task_ids)} entries for {rows} rows"


def _tensor(value: Any, shape: tuple[int, ...], dtype: torch.dtype, what: str) -> Tensor:
    assert isinstance(value, Tensor), f"{what} is a {type(value).__name__}, not a torch tensor"
    assert tuple(value.shape) == shape, f"{what} has shape {tuple(value.shape)}, the spec says {shape}"
    assert value.dtype == dtype, f"{what} is {value.dtype}, not {dtype}"
    return value


def _check_observation(env: VlaVectorEnv, observation: Observation) -> None:
    spec, rows = env.env_spec, env.num_envs
    dims = {STATE: spec.state_dim} | ({ENV_STATE: spec.env_state_dim} if spec.env_state_dim else {})
    assert set(observation) == set(dims) | {TASK}, (
        f"observation has {sorted(observation)}, the spec says {sorted([*dims, TASK])}"
    )
    for key, size in dims.items():
        value = _tensor(observation[key], (rows, size), torch.float32, key)
        assert torch.isfinite(value).all(), f"{key} is not finite"
    tasks = observation[TASK]
    assert isinstance(tasks, list) and len(tasks) == rows, f"task must be a list of {rows} strings"
    for task in tasks:
        assert task in spec.tasks, f"task {task!r} is not among env_spec.tasks"


def _check_images(env: VlaVectorEnv, images: dict[str, Tensor], count: int) -> None:
    cameras = env.env_spec.cameras
    assert set(images) == set(cameras), f"look() gives {sorted(images)}, the spec says {sorted(cameras)}"
    for key, (height, width) in cameras.items():
        _tensor(images[key], (count, 3, height, width), torch.uint8, f"look()[{key}]")


def _actions(env: VlaVectorEnv, count: int, seed: int) -> Tensor:
    """``count`` random actions [count, B, A] well inside the bounds."""
    spec = env.env_spec
    low, high = torch.tensor(spec.action_low), torch.tensor(spec.action_high)
    draws = torch.rand(count, env.num_envs, spec.action_dim, generator=torch.Generator().manual_seed(seed))
    return low + (0.25 + 0.5 * draws) * (high - low)


def _step(env: VlaVectorEnv, action: Tensor) -> tuple[Observation, Tensor, Tensor, Tensor, dict]:
    rows = env.num_envs
    observation, reward, terminated, truncated, info = env.step(action)
    _check_observation(env, observation)
    _tensor(reward, (rows,), torch.float32, "reward")
    _tensor(terminated, (rows,), torch.bool, "terminated")
    _tensor(truncated, (rows,), torch.bool, "truncated")
    assert "success" in info, "info lacks success"
    _tensor(info["success"], (rows,), torch.bool, "info['success']")
    assert not (terminated & truncated).any(), "a row is both terminated and truncated"
    return observation, reward, terminated, truncated, info


def _play(env: VlaVectorEnv, seed: int) -> list[dict[str, Any]]:
    """Observations and pictures of the first steps from ``seed`` under fixed actions."""
    observation, _ = env.reset(seed=seed)
    _check_observation(env, observation)
    seen = [dict(observation) | env.look()]
    for action in _actions(env, STEPS, seed):
        observation, _, terminated, truncated, _ = _step(env, action)
        seen.append(dict(observation) | env.look())
        if (terminated | truncated).any():
            break
    return seen


def _check_same(a: list[dict[str, Any]], b: list[dict[str, Any]], what: str) -> None:
    assert len(a) == len(b), f"{what}: episodes of different length"
    for step, (x, y) in enumerate(zip(a, b, strict=True)):
        for key in x:
            same = x[key] == y[key] if key == TASK else torch.equal(x[key], y[key])
            assert same, f"{what}: {key} differs at step {step}"


def _vectors(observation: Observation) -> Tensor:
    parts = [observation[STATE]] + ([observation[ENV_STATE]] if ENV_STATE in observation else [])
    return torch.cat(parts, dim=1)


def _check_seed_matters(env: VlaVectorEnv, seed: int) -> None:
    a = _vectors(env.reset(seed=seed)[0])
    assert not torch.equal(a, _vectors(env.reset(seed=seed + 1000)[0])), "another seed gives the same episode"
    seeds: Any = [seed + i for i in range(env.num_envs)]
    assert torch.equal(a, _vectors(env.reset(seed=seeds)[0])), "an int seed must give row i the seed + i"


def _check_errors_before_step(env: VlaVectorEnv, seed: int) -> None:
    spec, rows = env.env_spec, env.num_envs
    env.reset(seed=seed)
    good = _actions(env, 1, seed)[0]
    for shape in ((rows, spec.action_dim + 1), (rows + 1, spec.action_dim), (spec.action_dim,)):
        try:
            env.step(torch.zeros(shape))
        except UserError:
            continue
        raise AssertionError(f"an action of shape {shape} must raise UserError")
    bad = good.clone()
    bad[0, 0] = float("nan")
    try:
        env.step(bad)
    except NonFiniteError:
        return
    raise AssertionError("an action with NaN must raise NonFiniteError")


def _check_look(env: VlaVectorEnv, seed: int) -> None:
    observation, _ = env.reset(seed=seed)
    images = env.look()
    _check_images(env, images, env.num_envs)
    for rows in ([env.num_envs - 1], torch.tensor([0]), list(range(env.num_envs))[::-1]):
        part, index = env.look(rows), torch.as_tensor(rows)
        _check_images(env, part, len(index))
        for key, value in part.items():
            assert torch.equal(value, images[key][index]), f"look({rows}) differs from look() in {key}"
    for key, value in images.items():
        assert value.float().std() > 1, f"look()[{key}] is one flat colour"
    action = _actions(env, 1, seed)[0]
    seen, *_ = _step(env, action)
    env.reset(seed=seed)
    unseen, *_ = _step(env, action)
    assert torch.equal(_vectors(seen), _vectors(unseen)), "looking changes what happens next"


def _check_partial_reset(env: VlaVectorEnv, seed: int) -> None:
    before, _ = env.reset(seed=seed)
    action = _actions(env, 1, seed)[0]
    middle, _, terminated, truncated, _ = _step(env, action)
    mask = terminated | truncated
    mask[0] = True
    images = env.look()
    seeds: Any = [seed] * env.num_envs
    after, _ = env.reset(seed=seeds, options={"reset_mask": mask.numpy()})
    _check_observation(env, after)
    kept = ~mask
    assert torch.equal(_vectors(after)[kept], _vectors(middle)[kept]), "a partial reset changed another row"
    assert torch.equal(_vectors(after)[0], _vectors(before)[0]), (
        "a partial reset does not begin its seed's episode"
    )
    for key, value in env.look().items():
        assert torch.equal(value[kept], images[key][kept]), f"a partial reset changed another row's {key}"
    if kept.any():  # the others go on from where they were
        alone, *_ = _step(env, action)
        env.reset(seed=seed)
        _step(env, action)
        together, *_ = _step(env, action)
        assert torch.equal(_vectors(alone)[kept], _vectors(together)[kept]), (
            "a partial reset changed another row's future"
        )


def _check_truncation(env: VlaVectorEnv, seed: int) -> None:
    """Stand still until the time limit; rows that succeed by that are begun again under another seed."""
    spec = env.env_spec
    still = (torch.tensor(spec.action_low) + torch.tensor(spec.action_high)) / 2
    action = still.expand(env.num_envs, -1).clone()
    for attempt in range(5):
        env.reset(seed=seed + 100 * attempt)
        step = 0
        while step < spec.max_episode_steps:
            step += 1
            observation, _, terminated, truncated, info = _step(env, action)
            assert not (info["success"] & truncated).any(), (
                "success at the time limit must terminate, not truncate"
            )
            if (terminated | truncated).any():
                break
        else:
            raise AssertionError(f"no row ended within max_episode_steps = {spec.max_episode_steps}")
        _check_finished(env, action, terminated | truncated, observation)
        if truncated.any():
            # Rows of several tasks may have shorter limits of their own than the batch's.
            if len(set(env.task_ids())) == 1:
                assert step == spec.max_episode_steps, f"truncated at step {step} of {spec.max_episode_steps}"
            return
    raise AssertionError("standing still always ends the episode early: the time limit could not be checked")


def _check_finished(env: VlaVectorEnv, action: Tensor, done: Tensor, final: Observation) -> None:
    rows = done.nonzero().flatten()
    pictures = env.look(rows)
    _check_images(env, pictures, len(rows))
    try:
        env.step(action)
    except RuntimeError:
        pass
    else:
        raise AssertionError("stepping a finished row must raise RuntimeError")
    for key, value in env.look(rows).items():
        assert torch.equal(value, pictures[key]), f"{key} of a finished row changes: no autoreset is allowed"
    kept = env.reset(seed=0, options={"reset_mask": torch.zeros(env.num_envs, dtype=torch.bool).numpy()})[0]
    assert torch.equal(_vectors(kept), _vectors(final)), (
        "the final observation is not kept until the row is reset"
    )
