"""Learner state on disk: safetensors + JSON, each file written whole or not at all, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vla_rl.algorithms.sharding import divided, whole
from vla_rl.errors import NonFiniteError, UserError
from vla_rl.runtime.tensors import settle, unwritten, write_tensors

TENSORS = "algorithm.safetensors"
COUNTERS = "algorithm.json"


def save_learner(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    generators: Mapping[str, torch.Generator],
    counters: Mapping[str, Any],
) -> None:
    """Write everything that a learner needs to continue bit for bit, apart from replay.

    Of what lies in parts on several ranks each writes the whole, and all have to.

    Raises:
        NonFiniteError: a weight is NaN or infinite; nothing is written.
        UserError: the disk is full or not writable.
    """
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors |= {f"module.{name}.{k}": whole(v) for k, v in module.state_dict().items()}
    for key, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise NonFiniteError(f"{key} is not finite: checkpoint not written")
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{name}.{index}.{k}": whole(v) for k, v in state.items()}
    tensors |= {f"generator.{name}": generator.get_state() for name, generator in generators.items()}
    # Two modules may share storage; safetensors wants every tensor its own.
    tensors = {k: v.detach().cpu().clone() for k, v in tensors.items()}
    write_tensors(folder / TENSORS, tensors, f"checkpoint {folder}")
    temporary = folder / (COUNTERS + ".tmp")
    try:
        temporary.write_text(json.dumps(dict(counters), indent=2))
        settle(temporary, folder / COUNTERS)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise unwritten(f"checkpoint {folder}", error) from error


def load_learner(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    generators: Mapping[str, torch.Generator],
) -> dict[str, Any]:
    """Read what ``save_learner`` wrote into the given objects; returns the counters.

    Raises:
        UserError: missing or truncated files, or shapes that differ from this configuration's.
    """
    tensors, counters = _read(folder)
    for name, module in modules.items():
        mine, saved = module.state_dict(), _part(tensors, f"module.{name}.")
        try:
            module.load_state_dict({k: divided(v, mine.get(k)) for k, v in saved.items()})
        except RuntimeError as error:
            line = str(error).splitlines()[-1].strip()
            raise UserError(f"{folder}: {name} does not fit this configuration ({line})") from error
    for name, optimizer in optimizers.items():
        state: dict[int, dict[str, Tensor]] = {}
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        for key, value in _part(tensors, f"optimizer.{name}.").items():
            index, field = key.split(".", 1)
            state.setdefault(int(index), {})[field] = divided(value, weights[int(index)])
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    for name, generator in generators.items():
        generator.set_state(tensors[f"generator.{name}"])
    return counters


def _read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        return load_file(folder / TENSORS), json.loads((folder / COUNTERS).read_text())
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read checkpoint {folder} ({error}): resume from another one") from error


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
