"""The untrained (or continued) policy that ``vla_rl.pretrain`` trains, for the features of its samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vla_rl.errors import UserError
from vla_rl.keys import ACTION, IMAGES
from vla_rl.policies.inside import copy_inside
from vla_rl.policies.lerobot_folder import first_line, local_folder, read_config, register_types
from vla_rl.policies.nano import nano_policy
from vla_rl.policies.nano_dit import nano_dit
from vla_rl.policies.nano_token import token_policy
from vla_rl.pretrain_data import Samples

if TYPE_CHECKING:
    from vla_rl.pretrain import PretrainConfig

OURS: dict[str, Callable[..., Any]] = {
    "smolvla_nano": nano_policy,
    "dit_nano": nano_dit,
    "token_nano": token_policy,
    "token_vla": token_policy,
}
"""Types that are built here, with the vision-language model inside the policy's folder."""


def features_of(samples: Samples) -> tuple[dict[str, Any], dict[str, Any]]:
    """LeRobot input and output features of the samples' keys."""
    from lerobot.configs import FeatureType, PolicyFeature

    inputs, outputs = {}, {}
    for key, array in samples.arrays.items():
        shape = tuple(array.shape[1:])
        if key == ACTION:
            outputs[key] = PolicyFeature(FeatureType.ACTION, shape)
        elif key.startswith(IMAGES):
            inputs[key] = PolicyFeature(FeatureType.VISUAL, shape)
        else:
            kind = FeatureType.ENV if key == "observation.environment_state" else FeatureType.STATE
            inputs[key] = PolicyFeature(kind, shape)
    return inputs, outputs


def small_settings(kind: str, chunk: int) -> dict[str, Any]:
    """Sizes of LeRobot's common types that train on a CPU without any download, with chunks of ``chunk``."""
    if kind == "act":
        small = {"dim_model": 256, "dim_feedforward": 512, "n_encoder_layers": 2, "use_vae": False}
        return small | {"chunk_size": chunk, "n_action_steps": chunk, "pretrained_backbone_weights": None}
    if kind == "diffusion":
        horizon = math.ceil((chunk + 1) / 8) * 8  # two observations; the U-Net halves three times
        return {
            "horizon": horizon,
            "n_action_steps": chunk,
            "drop_n_last_frames": horizon - chunk - 1,
            "down_dims": (64, 128, 256),
            "noise_scheduler_type": "DDIM",
            "num_inference_steps": 10,
            "pretrained_backbone_weights": None,
            "use_group_norm": True,
        }
    if kind == "multi_task_dit":
        return {
            "horizon": chunk + 1,
            "n_action_steps": chunk,
            "hidden_dim": 192,
            "num_layers": 4,
            "num_heads": 6,
        }
    return {"chunk_size": chunk, "n_action_steps": chunk}


def check_type(kind: str) -> None:
    """Refuse a policy type that is none, before any data is read.

    Raises:
        UserError: with the nearest names.
    """
    register_types()
    from lerobot.configs.policies import PreTrainedConfig

    from vla_rl.config import nearest

    known = sorted({*PreTrainedConfig.get_known_choices(), *OURS})
    if not _is_folder(kind) and kind not in known:
        raise UserError(f"type={kind} is no policy type or folder: {nearest(kind, known)}")


def _is_folder(kind: str) -> bool:
    return "/" in kind or Path(kind).is_dir()


def make_policy(config: PretrainConfig, samples: Samples, folder: Path) -> tuple[Any, Any]:
    """A LeRobot policy for the samples' features, and its configuration; its VLM, if local, in ``folder/vlm``.

    Raises:
        UserError: a type LeRobot does not know, or settings or features that do not fit it.
    """
    from lerobot.policies.factory import get_policy_class, make_policy_config

    inputs, outputs = features_of(samples)
    if config.type in OURS:
        shape: dict[str, Any] = {"chunk_size": config.chunk_size} | (config.overrides or {})
        if config.type == "token_vla" and "vlm" not in shape:
            raise UserError(
                "type=token_vla needs overrides={vlm: HUB_ID_OR_FOLDER}; token_nano needs no download"
            )
        if config.type.startswith("token_") and "fast" in shape:
            shape |= _fast_words(int(shape.pop("fast") or 0), samples, int(shape["chunk_size"]))
        tasks = sorted(set(samples.task))
        policy = OURS[config.type](folder, features=(inputs, outputs), tasks=tasks, **shape)
        return policy, policy.config
    if _is_folder(config.type):
        return _continued(config, inputs, outputs, folder)
    try:
        policy_config = make_policy_config(
            config.type,
            **{
                "input_features": inputs,
                "output_features": outputs,
                "device": "cpu",
                "push_to_hub": False,
                **small_settings(config.type, config.chunk_size),
                **(config.overrides or {}),
            },
        )
        _scale_environment_state(policy_config)
        policy_config.validate_features()
        return get_policy_class(config.type)(policy_config), policy_config
    except (ValueError, TypeError, NotImplementedError, OSError) as error:
        raise UserError(f"type={config.type}: {first_line(error)} (see overrides and inputs)") from error


def _fast_words(vocabulary: int, samples: Samples, length: int) -> dict[str, Any]:
    """Settings of a ``TokenVLAConfig`` with FAST words, ``vocabulary`` of them, made from the samples' own chunks; 0 = bins.

    Raises:
        UserError: fewer words than these actions need.
    """
    if not vocabulary:
        return {}
    from vla_rl.policies.fast_tokens import FastWords

    low, high = (samples.statistics()[ACTION][name] for name in ("q01", "q99"))
    index = torch.arange(len(samples.last))[:, None] + torch.arange(length)
    actions = samples.arrays[ACTION][torch.minimum(index, samples.last[:, None])]
    words = FastWords.fit((actions - low) / (high - low).clamp(min=1e-8) * 2 - 1, vocabulary)
    return {"fast": words.dumps(), "bins": words.size}


def _scale_environment_state(policy_config: Any) -> None:
    """Normalise ``observation.environment_state`` as the state is; LeRobot's policies leave it in metres by default."""
    modes = dict(policy_config.normalization_mapping)
    if "STATE" in modes:
        policy_config.normalization_mapping = {"ENV": modes["STATE"]} | modes


def _continued(config: PretrainConfig, inputs: dict, outputs: dict, folder: Path) -> tuple[Any, Any]:
    """An existing policy with its weights, to be trained further."""
    from lerobot.policies.factory import get_policy_class

    source = local_folder(config.type)
    policy_config = read_config(source)
    for key, feature in {**policy_config.input_features, **policy_config.output_features}.items():
        found = {**inputs, **outputs}.get(key)
        if ".empty_camera_" not in key and (found is None or tuple(found.shape) != tuple(feature.shape)):
            have = "nothing" if found is None else tuple(found.shape)
            raise UserError(f"{source} reads {key} {tuple(feature.shape)}; the data set has {have}")
    copy_inside(source, folder)
    for key, value in (config.overrides or {}).items():
        if not hasattr(policy_config, key):
            raise UserError(f"overrides.{key}: {policy_config.type} has no such field")
        setattr(policy_config, key, value)
    try:
        policy = get_policy_class(policy_config.type).from_pretrained(str(source), config=policy_config)
    except Exception as error:
        raise UserError(f"{source} cannot be loaded: {first_line(error)} (copy it again)") from error
    return policy, policy_config
