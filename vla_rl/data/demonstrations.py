"""Turn a recorded data set into the frames that residual RL learns from (see ``vla_rl.rollout.collector``).

The base policy is run *open loop along each demonstration*: its state is begun anew at every episode's first
frame and it is queried at its own chunk boundaries only, exactly as it would have been in the environment.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.data.dataset import Episode, dataset_info, load_episodes
from vla_rl.environment import EnvSpec
from vla_rl.errors import NonFiniteError, UserError
from vla_rl.keys import ACTION, ENV_STATE, IMAGES, INSTRUCTION, STATE, TASK
from vla_rl.nn.language import sentence_vector
from vla_rl.policies.base import Policy

BATCH = 32
"""Episodes whose base actions are computed together."""


def demonstration_frames(
    source: Path | str | Sequence[Episode],
    base_policy: Policy | None,
    env_spec: EnvSpec,
    *,
    image_keys: Sequence[str] = (),
    deterministic: bool = False,
    assume_success: bool = False,
    batch_size: int = BATCH,
) -> tuple[TensorDict, Tensor]:
    """Frames of all episodes one after the other, each closed by a final frame.

    Args:
        source: data set folder, or episodes already loaded (with the images that the base needs).
        base_policy: gives one action a step (``OpenLoop``), with ``base_candidates`` [B, N, A] or
            ``base_action`` when it offers several; None = the demonstrated action is its own base.
        env_spec: what will be trained in; bounds, keys and rate must fit.
        image_keys: cameras to keep in the frames (an image residual encoder).
        deterministic: passed to ``base_policy.act``.
        assume_success: for data sets without ``next.*`` columns: every episode ended in success.
        batch_size: episodes whose base actions are computed together.

    Returns:
        ``frames`` [K]: ``observation`` (nested), ``base_action`` [K, N, A], ``action`` [K, A],
        ``intervention``, ``reward``, ``terminated``, ``truncated``, ``final`` [K]; and ``rows`` int64 [K],
        all 0: one replay row in which the next frame of a frame is the one behind it.

    Raises:
        UserError: the data set does not fit, named by key.
    """
    policy_cameras = base_policy.spec.image_keys if base_policy else ()
    cameras = list(dict.fromkeys([*policy_cameras, *image_keys]))
    if isinstance(source, (str, Path)):
        info = dataset_info(source)
        if info.get("fps") and abs(info["fps"] - env_spec.rate_hz) > 0.5:
            raise UserError(
                f"{source} was recorded at {info['fps']} Hz, {env_spec.id} runs at {env_spec.rate_hz} Hz: "
                "record demonstrations in this environment"
            )
        name, episodes = str(source), load_episodes(source, images=cameras)
    else:
        name, episodes = "the demonstrations", list(source)
    if not episodes:
        raise UserError(f"{name} hold no episodes: record some with vla-rl record")
    keys = [STATE] + ([ENV_STATE] if env_spec.env_state_dim else [])
    if base_policy is not None:
        keys = list(dict.fromkeys([*keys, *base_policy.spec.state_keys]))
    sequences = [_Sequence(e, keys + cameras, name, env_spec, assume_success) for e in episodes]
    sequences = [s for s in sequences if s.length]
    if not sequences:
        raise UserError(f"{name} hold no complete transition: record longer episodes")
    stored = [STATE] + ([ENV_STATE] if env_spec.env_state_dim else []) + list(image_keys)
    base = _base_actions(sequences, base_policy, deterministic, batch_size)
    frames = TensorDict.cat([s.frames(stored, b) for s, b in zip(sequences, base, strict=True)])
    return frames, torch.zeros(len(frames), dtype=torch.int64)  # type: ignore[return-value]


class _Sequence:
    """One episode as T transitions and T + 1 observations."""

    def __init__(
        self, episode: Episode, keys: list[str], name: str, spec: EnvSpec, assume_success: bool
    ) -> None:
        data = episode.data
        sizes = {STATE: spec.state_dim, ENV_STATE: spec.env_state_dim, ACTION: spec.action_dim}
        for key in [*keys, ACTION]:
            if key not in data:
                raise UserError(f"{name} have no key {key}, which {spec.id} or its base needs: record it")
            if sizes.get(key, 0) and tuple(data[key].shape[1:]) != (sizes[key],):
                raise UserError(
                    f"{key} of {name} has shape {tuple(data[key].shape[1:])}, {spec.id} has ({sizes[key]},): "
                    "record demonstrations in this environment"
                )
        length = episode.length
        has_outcome = "next.reward" in data and "next.done" in data
        if not has_outcome and not assume_success:
            raise UserError(
                f"{name} have no next.reward and next.done: make them with vla-rl record, or set "
                "assume_success=true if every episode ended in success"
            )
        self.reward = torch.zeros(length)
        if has_outcome:
            self.reward = data["next.reward"].float()
            truncated = bool(data["next.truncated"][-1]) if "next.truncated" in data else not episode.success
            terminated = bool(data["next.done"][-1]) and not truncated
        else:
            self.reward[-1] = 1.0
            terminated = True
        self.terminated = terminated
        observation = {key: data[key] for key in keys}
        if all(key in episode.final for key in keys):
            observation = {k: torch.cat([v, episode.final[k][None]]) for k, v in observation.items()}
        elif terminated:  # never bootstrapped from: any observation closes it
            observation = {k: torch.cat([v, v[-1:]]) for k, v in observation.items()}
        else:  # a data set without final observations: the last frame becomes the closing one
            length -= 1
            self.reward = self.reward[:length]
        low, high = torch.tensor(spec.action_low), torch.tensor(spec.action_high)
        self.action = torch.minimum(torch.maximum(data[ACTION][:length], low), high)
        for key in (STATE, ENV_STATE, ACTION):
            if key in data and not torch.isfinite(data[key]).all():
                raise NonFiniteError(f"{key} of episode {episode.index} in {name} is not finite")
        self.length, self.observation, self.task = length, observation, episode.task

    def frames(self, keys: list[str], base: Tensor) -> TensorDict:
        """T + 1 frames; ``base`` [T + 1, N, A]."""
        count = self.length + 1
        flags = torch.zeros(count, dtype=torch.bool)
        terminated, truncated, final = flags.clone(), flags.clone(), flags.clone()
        terminated[-2], truncated[-2], final[-1] = self.terminated, not self.terminated, True
        seen = {k: self.observation[k] for k in keys}
        seen[INSTRUCTION] = sentence_vector(self.task).repeat(count, 1)
        return TensorDict(
            {
                "observation": TensorDict(seen, batch_size=[count]),
                "base_action": base,
                "action": torch.cat([self.action, torch.zeros_like(self.action[:1])]),
                "intervention": flags,
                "reward": torch.cat([self.reward, torch.zeros(1)]),
                "terminated": terminated,
                "truncated": truncated,
                "final": final,
            },
            batch_size=[count],
        )


def _base_actions(
    sequences: list[_Sequence], policy: Policy | None, deterministic: bool, batch_size: int
) -> list[Tensor]:
    """Base candidates [T + 1, N, A] of every sequence."""
    if policy is None:
        return [torch.cat([s.action, torch.zeros_like(s.action[:1])])[:, None] for s in sequences]
    results: dict[int, Tensor] = {}
    order = sorted(range(len(sequences)), key=lambda i: -sequences[i].length)  # similar lengths together
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        bases = _along([sequences[i] for i in chosen], policy, deterministic)
        results.update(zip(chosen, bases, strict=True))
    return [results[i] for i in range(len(sequences))]


@torch.no_grad()
def _along(batch: list[_Sequence], policy: Policy, deterministic: bool) -> list[Tensor]:
    """Run ``policy`` along sequences in step; rows leave the batch as they end."""
    # After a success nothing follows: its closing frame keeps zeros, as the collector's does.
    ends = [s.length + (not s.terminated) for s in batch]
    alive = list(range(len(batch)))
    steps: list[list[Tensor]] = [[] for _ in batch]
    state = policy.initial_state(len(batch))
    t = 0
    while alive:
        observation = _observation(batch, alive, t, policy, state)
        output, state = policy.act(observation, state, deterministic=deterministic)
        base = _candidates(output)
        if not torch.isfinite(base).all():
            raise NonFiniteError("the base policy's action along a demonstration is not finite")
        for position, i in enumerate(alive):
            steps[i].append(base[position].cpu())
        t += 1
        keep = [position for position, i in enumerate(alive) if t < ends[i]]
        if len(keep) < len(alive):
            alive = [alive[position] for position in keep]
            state = state[torch.tensor(keep, dtype=torch.int64)]
    for sequence, base in zip(batch, steps, strict=True):
        if sequence.terminated:
            base.append(torch.zeros_like(base[0]))
    return [torch.stack(s) for s in steps]


def _observation(
    batch: list[_Sequence], alive: list[int], t: int, policy: Policy, state: TensorDict
) -> dict[str, Any]:
    """Step ``t`` of the sequences ``alive``; images only for rows whose policy asks, zeros elsewhere."""
    observation: dict[str, Any] = {TASK: [batch[i].task for i in alive]}
    for key in batch[0].observation:
        if not key.startswith(IMAGES):
            observation[key] = torch.stack([batch[i].observation[key][t] for i in alive])
    if policy.spec.image_keys:
        asked = policy.needs_images(state).nonzero().flatten().tolist()
        for key in policy.spec.image_keys:
            images = torch.zeros(len(alive), *batch[0].observation[key].shape[1:], dtype=torch.uint8)
            for position in asked:
                images[position] = batch[alive[position]].observation[key][t]
            observation[key] = images
    return observation


def _candidates(output: TensorDict) -> Tensor:
    """All the actions the base offered, [B, N, A]."""
    for key in ("base_candidates", "base_action", "action"):
        if key in output:
            base = output[key]
            return base if base.dim() == 3 else base[:, None]
    raise UserError("the base policy gave no action")
