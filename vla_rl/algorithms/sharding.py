"""A policy whose trained weights lie in parts on the ranks that learn together (FSDP, arXiv 2304.11277).

Of what is trained a rank keeps one part of n: weights, gradients and the optimiser's state. For a pass the parts are
gathered, forwards and once more backwards; gradients are averaged on their way to the parts. What is frozen stays whole:
it may be the base's as well.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils import _pytree

from vla_rl.algorithms.descent import ranks
from vla_rl.policies.step import Step

ENTRANCES = ("denoise_step", "logits")
"""What heads ask of a network beside its ``forward``."""


def shard(network: nn.Module) -> None:
    """Leave this rank its part of what ``network`` trains; parameters are other objects from then on.

    Args:
        network: the same on all ranks, none of whose trained parameters is a scalar.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    trained = [p for p in network.parameters() if p.requires_grad]
    frozen = {p for p in network.parameters() if not p.requires_grad}
    # FSDP gathers for the backward pass when a tensor of the output is come to, and has to find it there.
    if Step not in _pytree.SUPPORTED_NODES:
        _pytree.register_dataclass(Step)
    mesh = init_device_mesh(trained[0].device.type, (ranks(),))
    fully_shard(network, mesh=mesh, reshard_after_forward=True, ignored_params=frozen)
    for name in ENTRANCES:
        if hasattr(network, name):
            register_fsdp_forward_method(network, name)


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, which every rank has to ask for if they have parts of it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided(tensor: Tensor, like: Tensor | None) -> Tensor:
    """This rank's part of the whole ``tensor``, as it has of ``like``; the whole where that is not in parts, or of another shape."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    here = tensor.to(like.device)
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)
