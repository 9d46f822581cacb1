"""One step of an optimiser, the same on every rank where several learn together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, grad_clip: float = 0.0) -> None:
    """Gradients of ``loss``, averaged over ranks, clipped to the norm ``grad_clip`` (0 = not), and a step."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    average_gradients(weights)
    if grad_clip:
        nn.utils.clip_grad_norm_(weights, grad_clip, foreach=True)
    optimizer.step()


@torch.no_grad()
def average_gradients(weights: Sequence[nn.Parameter]) -> None:
    """Replace gradients by their mean over the ranks of the process group; nothing where there is none.

    All in one message, as ``DistributedDataParallel`` does it by the bucket. It wraps one module's forward pass; the
    losses here are made of several modules' and of functions that are compiled.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    ranks = distributed.get_world_size()
    learned = [p for p in weights if p.requires_grad]
    for weight in learned:  # what one rank's loss has not touched another's may have
        weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
    flat = torch.cat([p.grad.flatten() for p in learned])  # type: ignore[union-attr]
    distributed.all_reduce(flat)
    parts = (flat / ranks).split([p.numel() for p in learned])
    for weight, part in zip(learned, parts, strict=True):
        weight.grad.copy_(part.view_as(weight))  # type: ignore[union-attr]
