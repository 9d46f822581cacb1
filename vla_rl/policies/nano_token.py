"""``token_vla`` policies: at 2-6 million parameters on an InternVL made here, or on a published vision-language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from vla_rl.errors import UserError
from vla_rl.policies.inside import VLM_FOLDER
from vla_rl.policies.nano import refuse_unknown, train_bpe

VLM_SETTINGS = ("text_width", "text_layers", "vision_width", "vision_layers", "patch", "stem", "keypoints")
"""Settings of ``build_internvl`` that change the size of the model."""

SPECIAL = ("<pad>", "<s>", "</s>", "<img>", "</img>", "<IMG_CONTEXT>")
"""InternVL's special tokens."""


def build_internvl(
    folder: Path,
    *,
    image_size: int = 96,
    text_width: int = 192,
    text_layers: int = 4,
    vision_width: int = 128,
    vision_layers: int = 3,
    patch: int = 16,
    stem: int = 0,
    keypoints: int = 0,
    cameras: int = 1,
    tasks: Sequence[str] = (),
) -> None:
    """Write configuration and tokenizer of a small InternVL (random weights are made at load).

    Args:
        folder: where they go.
        image_size: pixels; ``image_size / patch`` must be even (2x2 patches become one token).
        text_width: hidden size of the language model (heads of 32).
        text_layers: its depth.
        vision_width: hidden size of the vision tower.
        vision_layers: its depth.
        patch: patch size in pixels.
        stem: channels after the first of the convolutions that stand in place of the patches' linear map, which sees small
            objects better (``ConvStem``; the patch a power of two); 0 = the linear map.
        keypoints: maps of a tower of ``vision_layers`` + 2 convolutions of ``vision_width`` channels that says where things are, one
            for each camera, in place of a vision transformer (``KeypointTower``: four tokens of each picture); 0 = the transformer.
        cameras: how many.
        tasks: sentences added to the tokenizer's corpus.
    """
    from transformers import InternVLConfig, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(tasks, SPECIAL), pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    heads = text_width // 32
    config_class: Any = InternVLConfig  # its generated signature is opaque to type checkers
    config = config_class(
        text_config={
            "model_type": "qwen2",
            "hidden_size": text_width,
            "intermediate_size": text_width * 8 // 3 // 32 * 32,
            "num_hidden_layers": text_layers,
            "num_attention_heads": heads,
            "num_key_value_heads": max(1, heads // 3),
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 512,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "tie_word_embeddings": False,
        },
        vision_config={
            "hidden_size": vision_width,
            "intermediate_size": vision_width * 3,
            "num_hidden_layers": vision_layers,
            "num_attention_heads": vision_width // 32,
            "image_size": [image_size, image_size],
            "patch_size": [patch, patch],
            "stem": stem,
            "keypoints": keypoints,
            "cameras": cameras,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=(image_size // patch // 2) ** 2,
        tie_word_embeddings=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def token_policy(
    folder: Path,
    *,
    features: tuple[dict[str, Any], dict[str, Any]],
    chunk_size: int = 8,
    tasks: Sequence[str] = (),
    vlm: str | None = None,
    **settings: Any,
) -> Any:
    """A ``TokenVLAPolicy``, configuration and tokenizer of its vision-language model in ``folder/vlm``.

    Args:
        folder: where ``vlm/`` goes.
        features: LeRobot input and output features.
        chunk_size: T.
        tasks: sentences for the tokenizer of a nano model.
        vlm: hub id or folder of a published model whose weights to begin from; None = a nano model at random.
        **settings: of ``build_internvl`` (``text_width`` ...) or ``TokenVLAConfig``.

    Raises:
        UserError: no camera, an image size that does not fit, an unknown setting, a model that does not load.
    """
    from vla_rl.policies.token_vla.configuration_token_vla import TokenVLAConfig
    from vla_rl.policies.token_vla.modeling_token_vla import TokenVLAPolicy

    inputs, outputs = features
    known = [*VLM_SETTINGS, *(f.name for f in fields(TokenVLAConfig))]
    refuse_unknown("token_vla", settings, known)
    cameras = [f.shape for f in inputs.values() if f.type.name == "VISUAL"]
    sizes = set(cameras)
    if not sizes:
        raise UserError(f"token_vla needs a camera; the inputs are {', '.join(inputs)}")
    shape = {name: settings.pop(name) for name in VLM_SETTINGS if name in settings}
    inner = folder / VLM_FOLDER
    if vlm is None:
        patch = shape.get("patch", 16)
        _, height, width = sizes.pop()
        if sizes or height != width or height % (2 * patch):
            raise UserError(
                f"token_nano needs square pictures of one size, a multiple of {2 * patch} pixels, not {height}x{width}"
            )
        if shape.get("stem", 0) and patch & (patch - 1):
            raise UserError(
                f"token_nano with stem={shape['stem']} needs a patch that is a power of two, not {patch}"
            )
        if shape.get("keypoints", 0) and shape.get("stem", 0):
            raise UserError("token_nano: keypoints and stem are two towers; set one of them to 0")
        build_internvl(inner, image_size=height, cameras=len(cameras), tasks=tasks, **shape)
    else:
        _copy_model(vlm, inner)
    config = TokenVLAConfig(
        input_features=inputs,
        output_features=outputs,
        vlm_model_name=vlm or str(inner),
        load_vlm_weights=vlm is not None,
        chunk_size=chunk_size,
        n_action_steps=chunk_size,
        device="cpu",
        push_to_hub=False,
        **settings,
    )
    policy = TokenVLAPolicy(config)
    # From here on the policy's own weights count, and its folder is all that it needs.
    config.vlm_model_name, config.load_vlm_weights = str(inner), False
    return policy


def _copy_model(vlm: str, folder: Path) -> None:
    """Configuration and tokenizer of a published model."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        AutoConfig.from_pretrained(vlm).save_pretrained(folder)
        AutoTokenizer.from_pretrained(vlm).save_pretrained(folder)
    except Exception as error:  # offline, no such id, no tokenizer: the hub has a class for each
        text = str(error).strip().splitlines()
        raise UserError(f"vlm={vlm} does not load: {text[0] if text else type(error).__name__}") from error
