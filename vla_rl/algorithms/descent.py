"""One step of an optimiser, the same on every rank where several learn together, and what they agree on besides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, grad_clip: float = 0.0) -> None:
    """Gradients of ``loss``, averaged over ranks, clipped to the norm ``grad_clip`` (0 = not), and a step."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    average_gradients(weights)
    if grad_clip:
        clip_norm(weights, grad_clip)
    optimizer.step()


def clip_norm(weights: Sequence[nn.Parameter], most: float) -> None:
    """Scale the gradients of ``weights`` to the norm ``most``, all together, where it is above it."""
    gradients = [p.grad for p in weights if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    # Most are below it. A look at the norm makes a GPU wait, or other ranks; there all are multiplied, by 1 as well.
    if isinstance(norm, DTensor) or norm.device.type != "cpu" or norm > most:
        nn.utils.clip_grads_with_norm_(weights, most, norm, foreach=True)


def ranks() -> int:
    """How many learn together; 1 where there is no process group."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def summed(*values: float) -> list[float]:
    """Each number summed over all ranks, which all have to ask for it.

    Raises:
        RuntimeError: one of them is gone.
    """
    if ranks() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(total)
    return total.tolist()


def averaged(value: float) -> float:
    """A number's mean over all ranks, see ``summed``."""
    return summed(value)[0] / ranks()


@torch.no_grad()
def from_first(modules: Iterable[nn.Module]) -> None:
    """Give all ranks what the first one's modules hold, running statistics among it; not what they have parts of."""
    if ranks() > 1:
        for module in modules:
            for tensor in module.state_dict().values():
                if not isinstance(tensor, DTensor):
                    torch.distributed.broadcast(tensor, 0)


@torch.no_grad()
def average_gradients(weights: Sequence[nn.Parameter]) -> None:
    """Replace gradients by their mean over the ranks of the process group; nothing where there is none, or where FSDP did.

    All in one message, as ``DistributedDataParallel`` does it by the bucket. It wraps one module's forward pass; the
    losses here are made of several modules' and of functions that are compiled.
    """
    count = ranks()
    if count == 1:
        return
    learned = [p for p in weights if p.requires_grad and not isinstance(p, DTensor)]
    if not learned:
        return
    for weight in learned:  # what one rank's loss has not touched another's may have
        weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
    flat = torch.cat([p.grad.flatten() for p in learned])  # type: ignore[union-attr]
    torch.distributed.all_reduce(flat)
    parts = (flat / count).split([p.numel() for p in learned])
    for weight, part in zip(learned, parts, strict=True):
        weight.grad.copy_(part.view_as(weight))  # type: ignore[union-attr]
