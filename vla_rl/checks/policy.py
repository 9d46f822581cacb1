"""Conformance of a policy with ``vla_rl.policies.base.Policy``."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.environment import EnvSpec
from vla_rl.keys import ENV_STATE, IMAGES, STATE, TASK
from vla_rl.policies.base import Observation, Policy, check_compatible, reset_rows

TOLERANCE = 1e-4  # between a row alone and the same row in a batch: sums run in another order
STEPS = 6


def check_policy(
    policy: Policy,
    env: EnvSpec,
    *,
    rows: int = 3,
    steps: int = STEPS,
    any_batch: bool = True,
    seed: int = 0,
) -> None:
    """Run a policy on random observations and assert that it keeps its contract.

    Whether it samples is found out, not asked: what changes with torch's seed is sampled, and is only compared
    under the same seed. Everything else must not depend on the batch around it.

    Args:
        policy: any policy.
        env: the environment it would act in (sizes, cameras, tasks).
        rows: B; at least 2, to see whether rows touch each other.
        steps: decisions made with ``deterministic`` true, and again with false.
        any_batch: it acts in batches of other sizes than ``rows`` too (an expert bound to an environment may not).
        seed: of the observations.

    Raises:
        AssertionError: what is broken, in words.
    """
    assert rows >= 2, "check_policy needs at least 2 rows"
    check_compatible(policy.spec, env)
    _check_state(policy, policy.initial_state(rows), rows, "initial_state")
    with torch.random.fork_rng(devices=[]):
        for deterministic in (True, False):
            generator = torch.Generator().manual_seed(seed)
            state = policy.initial_state(rows)
            for step in range(steps):
                state = _check_step(
                    policy,
                    env,
                    state,
                    generator,
                    deterministic,
                    f"step {step} (deterministic={deterministic})",
                    any_batch,
                )


def example_observation(
    policy: Policy, env: EnvSpec, looks: Tensor, generator: torch.Generator
) -> Observation:
    """A random observation of B rows, with images in the rows of ``looks`` [B] and zeros in the others."""
    rows = len(looks)
    observation: Observation = {STATE: torch.randn(rows, env.state_dim, generator=generator)}
    if env.env_state_dim:
        observation[ENV_STATE] = torch.randn(rows, env.env_state_dim, generator=generator)
    for key in policy.spec.image_keys:
        picture = torch.randint(0, 256, (rows, 3, *env.cameras[key]), dtype=torch.uint8, generator=generator)
        observation[key] = picture * looks.view(-1, 1, 1, 1)
    observation[TASK] = [env.tasks[row % len(env.tasks)] for row in range(rows)]
    return observation


def _check_step(
    policy: Policy,
    env: EnvSpec,
    state: TensorDict,
    generator: torch.Generator,
    deterministic: bool,
    where: str,
    any_batch: bool,
) -> TensorDict:
    """One decision, looked at from all sides; returns the next state."""
    rows = state.batch_size[0]
    looks = _check_looks(policy, state, where)
    observation = example_observation(policy, env, looks, generator)
    seed = int(torch.randint(2**31, (1,), generator=generator))

    def act(observation: Observation, state: TensorDict, seed: int = seed) -> tuple[TensorDict, TensorDict]:
        torch.manual_seed(seed)
        return policy.act(observation, state, deterministic=deterministic)

    state_before, seen_before = state.clone(), _copy(observation)
    output, after = act(observation, state)
    _check_output(policy, output, rows, where)
    _check_state(policy, after, rows, where)
    assert _same(state, state_before), f"{where}: act changed the state it was given in place"
    assert _same_observation(observation, seen_before), f"{where}: act changed the observation in place"

    again, after_again = act(observation, state)
    assert _same(output, again) and _same(after, after_again), (
        f"{where}: the same input and torch seed gave another answer: memory outside the state, or another generator"
    )
    poisoned = _poison(policy, observation, looks, generator)
    other, after_other = act(poisoned, state)
    assert _same(output, other) and _same(after, after_other), (
        f"{where}: images of rows that needs_images did not name were read"
    )
    # Rows whose action does not depend on the seed must not depend on the other rows either.
    settled = (act(observation, state, seed + 1)[0]["action"] == output["action"]).flatten(1).all(1)
    if any_batch:
        _check_alone(policy, act, observation, state, output, settled, where)
    _check_reset(policy, env, act, observation, state, output, settled, generator, where)
    return after


def _check_looks(policy: Policy, state: TensorDict, where: str) -> Tensor:
    looks = policy.needs_images(state)
    rows = state.batch_size[0]
    assert looks.dtype == torch.bool and tuple(looks.shape) == (rows,), (
        f"{where}: needs_images gave {looks.dtype} {tuple(looks.shape)}, not bool ({rows},)"
    )
    assert policy.spec.image_keys or not looks.any(), (
        f"{where}: needs_images is true, but the spec has no image_keys"
    )
    return looks


def _check_output(policy: Policy, output: TensorDict, rows: int, where: str) -> None:
    spec = policy.spec
    assert "action" in output, f"{where}: act gave no 'action'"
    action = output["action"]
    shape = (rows, spec.chunk_length, spec.action_dim) if spec.chunk_length else (rows, spec.action_dim)
    assert tuple(action.shape) == shape, (
        f"{where}: action has shape {tuple(action.shape)}, the spec says {shape}"
    )
    assert action.dtype == torch.float32, f"{where}: action is {action.dtype}, not float32"
    assert torch.isfinite(action).all(), f"{where}: action is not finite"
    assert not action.requires_grad, f"{where}: action carries a gradient"
    assert not action.is_inference(), (
        f"{where}: action is an inference tensor, which nothing can learn from: clone it"
    )
    assert tuple(output.batch_size) == (rows,), f"{where}: output has batch size {tuple(output.batch_size)}"


def _check_state(policy: Policy, state: TensorDict, rows: int, where: str) -> None:
    assert isinstance(state, TensorDict), f"{where}: state is a {type(state).__name__}, not a TensorDict"
    assert tuple(state.batch_size) == (rows,), (
        f"{where}: state has batch size {tuple(state.batch_size)}, not ({rows},)"
    )
    start = dict(_leaves(policy.initial_state(rows)))
    found = dict(_leaves(state))
    assert found.keys() == start.keys(), (
        f"{where}: state has leaves {sorted(map(str, found))}, initial_state has {sorted(map(str, start))}"
    )
    for key, leaf in found.items():
        assert leaf.shape == start[key].shape and leaf.dtype == start[key].dtype, (
            f"{where}: state leaf {key} is {leaf.dtype} {tuple(leaf.shape)}, it began as "
            f"{start[key].dtype} {tuple(start[key].shape)}"
        )


def _check_alone(
    policy: Policy,
    act: Any,
    observation: Observation,
    state: TensorDict,
    output: TensorDict,
    settled: Tensor,
    where: str,
) -> None:
    """A batch of one gives what the row gives in the batch."""
    for row in settled.nonzero().flatten().tolist():
        part: Observation = {k: v[row : row + 1] for k, v in observation.items() if k != TASK}
        part[TASK] = [observation[TASK][row]]
        alone = act(part, state[row : row + 1])[0]["action"][0]
        _close(alone, output["action"][row], f"{where}: row {row} acts otherwise alone than in the batch")


def _check_reset(
    policy: Policy,
    env: EnvSpec,
    act: Any,
    observation: Observation,
    state: TensorDict,
    output: TensorDict,
    settled: Tensor,
    generator: torch.Generator,
    where: str,
) -> None:
    """Row 0 begins a new episode; the others do not notice."""
    rows = state.batch_size[0]
    mask = torch.zeros(rows, dtype=torch.bool)
    mask[0] = True
    reset = reset_rows(policy, state, mask)
    start = policy.initial_state(rows)
    assert _same(reset[1:], state[1:]), f"{where}: the reset of row 0 changed the state of other rows"
    assert _same(reset[:1], start[:1]), f"{where}: row 0 has not begun anew after its reset"
    looks = policy.needs_images(reset)
    assert torch.equal(looks[1:], policy.needs_images(state)[1:]), (
        f"{where}: the reset of row 0 changed who looks"
    )
    pictures = example_observation(policy, env, looks, generator)
    seen = dict(observation)
    for key in policy.spec.image_keys:
        seen[key] = torch.cat([pictures[key][:1], observation[key][1:]])
    action = act(seen, reset)[0]["action"]
    for row in range(1, rows):
        if settled[row]:
            _close(
                action[row],
                output["action"][row],
                f"{where}: the reset of row 0 changed the action of row {row}",
            )


def _poison(
    policy: Policy, observation: Observation, looks: Tensor, generator: torch.Generator
) -> Observation:
    """Noise in the images of rows that need not look."""
    poisoned = dict(observation)
    for key in (k for k in policy.spec.image_keys if k.startswith(IMAGES)):
        noise = torch.randint(0, 256, observation[key].shape, dtype=torch.uint8, generator=generator)
        poisoned[key] = torch.where(looks.view(-1, 1, 1, 1), observation[key], noise)
    return poisoned


def _close(a: Tensor, b: Tensor, message: str) -> None:
    gap = (a - b).abs().max().item()
    assert gap <= TOLERANCE * max(1.0, b.abs().max().item()), f"{message} (by {gap:.2g})"


def _leaves(state: TensorDict) -> list[tuple[Any, Tensor]]:
    return list(state.items(include_nested=True, leaves_only=True))


def _same(a: TensorDict, b: TensorDict) -> bool:
    left, right = dict(_leaves(a)), dict(_leaves(b))
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def _copy(observation: Observation) -> Observation:
    return {k: v.clone() if isinstance(v, Tensor) else list(v) for k, v in observation.items()}


def _same_observation(a: Observation, b: Observation) -> bool:
    same = (torch.equal(a[k], v) if isinstance(v, Tensor) else a[k] == v for k, v in b.items())
    return a.keys() == b.keys() and all(same)
