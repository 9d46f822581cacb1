"""LeRobot's MultiTaskDiTPolicy at 2-6 million parameters, built on a CLIP directory made here, with no download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_rl.errors import UserError
from vla_rl.keys import STATE
from vla_rl.policies.inside import CLIP_FOLDER
from vla_rl.policies.nano import refuse_unknown, train_bpe

CLIP_SETTINGS = ("text_width", "text_layers", "vision_width", "vision_layers", "patch")
"""Settings of ``build_clip`` that change the size of the model."""


def build_clip_tokenizer(tasks: Sequence[str] = ()) -> Any:
    """Sentences between ``<s>`` and ``</s>``, at whose end CLIP's text model reads its vector.

    transformers takes an ``</s>`` with id 2 for that of an old, broken configuration: here it is 3.
    """
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    bpe = train_bpe(tasks, ("<pad>", "<s>", "<unk>", "</s>"))
    ends = [(token, bpe.token_to_id(token)) for token in ("<s>", "</s>")]
    bpe.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def build_clip(
    folder: Path,
    *,
    image_size: int,
    text_width: int = 128,
    text_layers: int = 2,
    vision_width: int = 128,
    vision_layers: int = 3,
    patch: int = 16,
    tasks: Sequence[str] = (),
) -> None:
    """Write a CLIP directory with random weights and a tokenizer.

    LeRobot keeps the text model as it comes (frozen): a random one still gives each sentence a vector of its own.

    Args:
        folder: where it goes; its name must contain ``clip`` (LeRobot checks).
        image_size: pixels, a multiple of ``patch``.
        text_width: hidden size of the text model (heads of 32).
        text_layers: its depth.
        vision_width: hidden size of the vision tower.
        vision_layers: its depth.
        patch: patch size in pixels.
        tasks: sentences added to the tokenizer's corpus.
    """
    from transformers import CLIPConfig, CLIPModel

    tokenizer = build_clip_tokenizer(tasks)
    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config_class: Any = CLIPConfig  # its generated signature is opaque to type checkers
    config = config_class(
        text_config={
            "hidden_size": text_width,
            "intermediate_size": text_width * 4,
            "num_hidden_layers": text_layers,
            "num_attention_heads": text_width // 32,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 77,
            **tokens,
        },
        vision_config={
            "hidden_size": vision_width,
            "intermediate_size": vision_width * 4,
            "num_hidden_layers": vision_layers,
            "num_attention_heads": vision_width // 32,
            "image_size": image_size,
            "patch_size": patch,
        },
        projection_dim=64,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def nano_dit(
    folder: Path,
    *,
    features: tuple[dict[str, Any], dict[str, Any]],
    chunk_size: int = 16,
    tasks: Sequence[str] = (),
    **settings: Any,
) -> Any:
    """LeRobot's ``MultiTaskDiTPolicy`` with random weights, its CLIP directory written to ``folder/clip``.

    One observation, DDIM with 10 of 100 steps; ``objective=flow_matching`` makes it a flow.

    Args:
        folder: where ``clip/`` goes.
        features: LeRobot input and output features; with cameras, square images of one size.
        chunk_size: T.
        tasks: sentences for the tokenizer.
        **settings: of ``build_clip`` (``vision_width`` ...) or LeRobot's ``MultiTaskDiTConfig``.

    Raises:
        UserError: no proprioception, an image size that does not fit, an unknown setting.
    """
    from dataclasses import fields

    from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
    from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy

    inputs, outputs = features
    known = [*CLIP_SETTINGS, *(f.name for f in fields(MultiTaskDiTConfig))]
    refuse_unknown("dit_nano", settings, known)
    sizes = {f.shape[1:] for f in inputs.values() if f.type.name == "VISUAL"}
    patch = settings.get("patch", 16)
    if len(sizes) > 1 or STATE not in inputs:
        raise UserError(f"dit_nano needs {STATE} and cameras of one size; the inputs are {', '.join(inputs)}")
    height, width = sizes.pop() if sizes else (2 * patch, 2 * patch)
    if height != width or height % patch:
        raise UserError(
            f"dit_nano needs square images with a multiple of {patch} pixels, not {height}x{width}"
        )
    clip = folder / CLIP_FOLDER
    shape = {name: settings.pop(name) for name in CLIP_SETTINGS if name in settings}
    build_clip(clip, image_size=height, tasks=tasks, **shape)
    fields_ = {
        "input_features": inputs,
        "output_features": outputs,
        "n_obs_steps": 1,
        "horizon": chunk_size,
        "n_action_steps": chunk_size,
        "noise_scheduler_type": "DDIM",
        "num_inference_steps": 10,
        "num_integration_steps": 5,
        "hidden_dim": 192,
        "num_layers": 4,
        "num_heads": 6,
        "timestep_embed_dim": 64,
        "dropout": 0.0,
        "image_crop_shape": None,
        "vision_encoder_lr_multiplier": 1.0,
        "vision_encoder_name": str(clip),
        "text_encoder_name": str(clip),
        "tokenizer_max_length": 24,
        "push_to_hub": False,
        "device": "cpu",
    }
    return MultiTaskDiTPolicy(MultiTaskDiTConfig(**(fields_ | settings)))
