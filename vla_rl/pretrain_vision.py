"""Visual warm start: before behaviour cloning, the vision tower learns to say where things are.

A vision tower that starts from random weights (the nano policies download none) is slow to become of use in behaviour
cloning: the action head soon predicts well enough from proprioception and language alone, and the policy that
comes out is blind. Measured on the table tasks: shuffling the images left the loss of such a policy unchanged.
Regressing numbers that the simulator knows and the picture shows (where the cube is, where the hand is) takes two
minutes and mends it. Nothing of it is left in the policy but the tower's weights; a tower with pretrained weights
does not need it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lerobot.configs import NormalizationMode
from torch import Tensor, nn

from vla_rl.algorithms.descent import descend
from vla_rl.errors import NonFiniteError, UserError
from vla_rl.keys import IMAGES, STATE
from vla_rl.nn.step_size import warmed_cosine
from vla_rl.pretrain_data import Samples


def vision_targets(samples: Samples, targets: Mapping[str, Sequence[int]]) -> Tensor:
    """Standardised numbers [n, D] to read off the images.

    Args:
        samples: with the keys of ``targets`` among ``arrays`` or ``extra``.
        targets: key -> which of its numbers; an empty list = all that change.

    Raises:
        UserError: an index that a key does not have, or numbers that never change.
    """
    y = named_numbers(samples, targets)
    std = y.std(0, correction=0)
    if not (std > 1e-6).any():
        raise UserError("train.vision_targets: these numbers never change; name others")
    y = y[:, std > 1e-6]
    return (y - y.mean(0)) / y.std(0, correction=0)


def named_numbers(samples: Samples, targets: Mapping[str, Sequence[int]]) -> Tensor:
    """The numbers [n, D] that ``targets`` names, in their own units; raises as ``vision_targets`` does where a key has no such index."""
    parts = []
    for key, dims in targets.items():
        values = samples.extra.get(key, samples.arrays.get(key))
        assert values is not None, key  # Samples.read has refused data sets without it
        if any(not 0 <= d < values.shape[1] for d in dims):
            raise UserError(f"train.vision_targets names {key}{list(dims)}: it has {values.shape[1]} numbers")
        parts.append(values[:, list(dims)] if dims else values)
    return torch.cat(parts, dim=1).float()


def regress(
    parameters: Sequence[nn.Parameter],
    read: Callable[[Tensor], Tensor],
    wanted: Tensor,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
    progress: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Fit ``read`` to ``wanted`` by least squares: AdamW, 50 steps of warm-up, then a cosine to 2 % of ``lr``.

    Args:
        parameters: what is trained.
        read: frames [b], int64 -> predictions [b, D].
        wanted: [n, D], standardised.
        steps: optimiser steps.
        batch_size: frames per step.
        lr: peak step size.
        generator: picks the frames.
        progress: called with (step, loss).

    Returns:
        The loss of each step.

    Raises:
        NonFiniteError: the loss is NaN or infinite.
    """
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-4, fused=True)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * warmed_cosine(1.0, 50, step, steps)
        pick = torch.randint(len(wanted), (batch_size,), generator=generator)
        loss = (read(pick) - wanted[pick]).square().mean()
        if not torch.isfinite(loss):
            raise NonFiniteError(
                f"the visual warm start's loss is {loss.item()} at step {step + 1}: lower train.lr"
            )
        descend(optimizer, loss)
        losses.append(loss.item())
        if progress is not None:
            progress(step + 1, losses[-1])
    return losses


def warm_start_vision(
    policy: Any,
    samples: Samples,
    targets: Mapping[str, Sequence[int]],
    *,
    steps: int,
    batch_size: int = 64,
    lr: float = 1e-3,
    shift: int = 0,
    generator: torch.Generator,
    progress: Callable[[int, float], None] | None = None,
) -> float:
    """Train what sees the pictures (the tower, with SmolVLA its connector; of a Gaussian each camera's encoder) to regress ``targets``.

    Args:
        policy: LeRobot's ``SmolVLAPolicy`` or ``MultiTaskDiTPolicy``, a ``token_vla`` or ``gaussian_nano``.
        samples: frames.
        targets: key -> indices (see ``vision_targets``).
        steps: optimiser steps.
        batch_size: frames per step.
        lr: peak step size (see ``regress``).
        shift: random shift in pixels.
        generator: picks the frames.
        progress: called with (step, loss).

    Returns:
        The share of the targets' variance explained over the last tenth of the steps (R squared).

    Raises:
        UserError: another policy type, or targets that do not fit.
        NonFiniteError: the loss is NaN or infinite.
    """
    tower, see = _tower(policy, samples)
    cameras = [key for key in samples.arrays if key.startswith(IMAGES)]
    wanted = vision_targets(samples, targets)
    with torch.no_grad():
        width = see(_pictures(samples, cameras, torch.zeros(1).long(), 0)).shape[1]
    told = _proprioception(samples)
    head = Reader(width, told.shape[1], wanted.shape[1])
    trained = [*tower, *head.parameters()]
    # What is frozen learns here as well, and is frozen again afterwards.
    frozen = [p for p in tower if not p.requires_grad]
    for p in frozen:
        p.requires_grad_(True)
    policy.train()

    def read(pick: Tensor) -> Tensor:
        # From all cameras together: where one does not see a thing, or how far away it is, another may.
        return head(see(_pictures(samples, cameras, pick, shift)), told[pick])

    losses = regress(
        trained,
        read,
        wanted,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        generator=generator,
        progress=progress,
    )
    for p in frozen:
        p.requires_grad_(False).grad = None
    recent = losses[-max(1, steps // 10) :]
    return 1.0 - sum(recent) / len(recent)


class Reader(nn.Module):
    """Linear in what the tower found, and in proprioception, which the policy has as well: a wrist's camera shows where things are from there.

    Args:
        found: features.
        told: numbers of proprioception.
        wanted: targets.
    """

    def __init__(self, found: int, told: int, wanted: int) -> None:
        super().__init__()
        self.found = nn.Sequential(nn.LayerNorm(found), nn.Linear(found, wanted))
        self.told = nn.Linear(told, wanted, bias=False) if told else None

    def forward(self, found: Tensor, told: Tensor) -> Tensor:
        """[B, found] and [B, told] -> [B, wanted]."""
        seen = self.found(found)
        return seen if self.told is None else seen + self.told(told)


def _proprioception(samples: Samples) -> Tensor:
    """[n, S] standardised; S = 0 where the policy has none."""
    state = samples.arrays.get(STATE)
    if state is None:
        return torch.zeros(len(samples.last), 0)
    return (state - state.mean(0)) / state.std(0, correction=0).clamp(min=1e-6)


def _tower(policy: Any, samples: Samples) -> tuple[list[nn.Parameter], Callable[[Tensor], Tensor]]:
    """What is trained, and pictures [b, n, 3, H, W] in [0, 1] of n cameras -> features [b, F], normalised as the policy will see them."""
    body = getattr(getattr(policy, "model", None), "vlm_with_expert", None)
    if body is not None and hasattr(body, "embed_image"):
        vlm = body.get_vlm_model()
        trained = [*vlm.vision_model.parameters(), *vlm.connector.parameters()]
        return trained, _one_for_all(lambda images: body.embed_image(images * 2 - 1).float())
    if policy.config.type == "token_vla":
        vlm = policy.network.vlm.model
        trained = [*vlm.vision_tower.parameters(), *vlm.multi_modal_projector.parameters()]
        return trained, lambda pictures: policy.network.see(pictures).float().flatten(1)
    if policy.config.type == "gaussian_nano" and policy.cameras is not None:
        own = dict(zip(policy.cameras.keys, policy.cameras.cameras, strict=True))
        cameras = [key for key in samples.arrays if key.startswith(IMAGES)]
        nets = [(place, own[key]) for place, key in enumerate(cameras) if key in own]

        def each(pictures: Tensor) -> Tensor:
            return torch.cat([net(255 * pictures[:, place]) for place, net in nets], 1)

        return [*policy.cameras.parameters()], each
    encoder = getattr(getattr(policy, "observation_encoder", None), "vision_encoder", None)
    if encoder is None:
        raise UserError(
            "train.vision_steps warms up the vision tower of SmolVLA, MultiTaskDiT or token_vla (one for all cameras) and the encoders of "
            "gaussian_nano: this policy has none, set 0"
        )
    mean, std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    if policy.config.normalization_mapping.get("VISUAL") == NormalizationMode.MEAN_STD:
        found = [s for key, s in samples.statistics().items() if key.startswith(IMAGES)]
        mean, std = (torch.stack([s[name] for s in found]).mean(0) for name in ("mean", "std"))
    return [*encoder.parameters()], _one_for_all(lambda images: encoder((images - mean) / std))


def _one_for_all(see: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """One tower, pictures [b, 3, H, W] -> features, for the pictures [b, n, 3, H, W] of all cameras."""
    return lambda pictures: see(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2]).flatten(1)


def _pictures(samples: Samples, cameras: Sequence[str], pick: Tensor, shift: int) -> Tensor:
    """Frames ``pick`` [b] of n cameras: [b, n, 3, H, W] in [0, 1]."""
    return torch.cat([samples.pictures(key, pick[:, None], shift) for key in cameras], 1)
