"""Small bases in the same classes users have: LeRobot's SmolVLA at 3-6 million parameters, with no download.

A vision-language model directory (config, tokenizer, processor) is built locally and saved *inside* the policy
folder as ``vlm/``; ``config.json`` names it by that relative path, so the folder can be moved.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vla_rl.errors import UserError
from vla_rl.keys import ACTION, STATE, image_key
from vla_rl.policies.inside import VLM_FOLDER, blank_weights, inside, make_relative

VLM_SETTINGS = ("text_width", "text_layers", "vision_width", "vision_layers", "patch")
"""Settings of ``build_vlm`` that change the size of the model."""

CORPUS = """push pull lift pick place stack stand press open close turn reach insert put move take hold hang
unplug plug sweep slide drag lower raise rotate twist hit hammer assemble disassemble lock unlock kick throw drop
the a an cube block peg ball button door drawer window handle lever dial faucet nut ring basket shelf bin box can
cup plate mug bottle coffee machine wall hole stick soccer goal target table robot gripper arm charger receptacle
red green blue yellow black white orange purple grey left right front back top bottom side up down away towards
from to into onto on off of out over under with and it at in upright near far first then slowly gently"""
"""Words of robot instructions, from which the tokenizer is trained."""


SPECIAL = (
    "<pad>",
    "<s>",
    "</s>",
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
)
"""SmolVLM's special tokens."""


def refuse_unknown(kind: str, settings: Iterable[str], known: Sequence[str]) -> None:
    """Raises ``UserError`` for the first of ``settings`` that is none of ``known``, with the nearest."""
    for name in settings:
        if name not in known:
            close = ", ".join(difflib.get_close_matches(name, known, 3)) or ", ".join(known[:5])
            raise UserError(f"{kind} has no setting {name}: did you mean {close}?")


def build_tokenizer(extra: Iterable[str] = ()) -> Any:
    """A byte-level BPE tokenizer over ``CORPUS`` and ``extra`` sentences, with SmolVLM's special tokens."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(extra, SPECIAL),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
    )
    fast.fake_image_token = "<fake_token_around_image>"
    return fast


def train_bpe(extra: Iterable[str], special: Sequence[str]) -> Any:
    """A byte-level BPE over ``CORPUS`` and ``extra`` sentences; the ``special`` tokens have the first ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    words = CORPUS.split()
    sentences = [" ".join(words[i : i + 8]) for i in range(len(words))] + list(extra) * 4
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return tokenizer


def build_vlm(
    folder: Path,
    *,
    image_size: int = 96,
    text_width: int = 192,
    text_layers: int = 4,
    vision_width: int = 128,
    vision_layers: int = 3,
    patch: int = 16,
    tasks: Sequence[str] = (),
) -> None:
    """Write a SmolVLM directory (random weights are made at load) that LeRobot's SmolVLA can name.

    Args:
        folder: where ``config.json``, tokenizer and processor go.
        image_size: pixels; ``image_size / patch`` must be even (2x2 tokens are merged into one).
        text_width: hidden size of the language model (heads of 32).
        text_layers: its depth.
        vision_width: hidden size of the vision tower.
        vision_layers: its depth.
        patch: patch size in pixels.
        tasks: sentences added to the tokenizer's corpus.
    """
    from transformers import SmolVLMConfig, SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    tokenizer = build_tokenizer(tasks)
    heads = text_width // 32
    config_class: Any = SmolVLMConfig  # its generated signature is opaque to type checkers
    config = config_class(
        text_config={
            "model_type": "llama",
            "hidden_size": text_width,
            "intermediate_size": text_width * 8 // 3 // 32 * 32,
            "num_hidden_layers": text_layers,
            "num_attention_heads": heads,
            "num_key_value_heads": max(1, heads // 3),
            "head_dim": 32,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 512,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "model_type": "smolvlm_vision",
            "hidden_size": vision_width,
            "intermediate_size": vision_width * 3,
            "num_hidden_layers": vision_layers,
            "num_attention_heads": vision_width // 32,
            "image_size": image_size,
            "patch_size": patch,
        },
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,  # LeRobot freezes lm_head by name
    )
    size = {"longest_edge": image_size}
    images = SmolVLMImageProcessor(size=size, max_image_size=size, do_image_splitting=False)
    videos = SmolVLMVideoProcessor(
        size=size,
        max_image_size=size,
        fps=1,
        num_frames=4,
        video_sampling={"fps": 1, "max_frames": 4, "video_size": size},
    )
    processor = SmolVLMProcessor(
        images, tokenizer, videos, image_seq_len=(image_size // patch // 2) ** 2, chat_template=None
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def smolvla_config(
    vlm: Path,
    *,
    features: tuple[dict[str, Any], dict[str, Any]],
    image_size: int = 96,
    chunk_size: int = 16,
    flow_steps: int = 5,
    expert_width_multiplier: float = 0.75,
    device: str = "cpu",
    **settings: Any,
) -> Any:
    """LeRobot's ``SmolVLAConfig`` for a nano VLM; every weight trains.

    State and action are not padded (LeRobot pads to 32): the head then denoises no numbers that nobody reads.

    Args:
        vlm: directory from ``build_vlm``.
        features: LeRobot input and output features (``PolicyFeature`` by key).
        image_size: pixels, as given to ``build_vlm``.
        chunk_size: T, actions per chunk.
        flow_steps: Euler steps of the flow-matching head.
        expert_width_multiplier: width of the action expert relative to the language model.
        device: where it lives.
        **settings: other fields of ``SmolVLAConfig``.
    """
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

    inputs, outputs = features
    state_dim = inputs["observation.state"].shape[0]
    action_dim = outputs["action"].shape[0]
    fields: dict[str, Any] = {
        "input_features": inputs,
        "output_features": outputs,
        "vlm_model_name": str(vlm),
        "load_vlm_weights": False,
        "train_expert_only": False,
        "freeze_vision_encoder": False,
        "chunk_size": chunk_size,
        "n_action_steps": chunk_size,
        "max_state_dim": state_dim,
        "max_action_dim": action_dim,
        "resize_imgs_with_padding": (image_size, image_size),
        "tokenizer_max_length": 24,
        "num_steps": flow_steps,
        "num_vlm_layers": -1,
        "expert_width_multiplier": expert_width_multiplier,
        "push_to_hub": False,
        "device": device,
    }
    return SmolVLAConfig(**(fields | settings))


def nano_policy(
    folder: Path,
    *,
    features: tuple[dict[str, Any], dict[str, Any]],
    chunk_size: int = 16,
    tasks: Sequence[str] = (),
    **settings: Any,
) -> Any:
    """LeRobot's ``SmolVLAPolicy`` with random weights, its VLM directory written to ``folder/vlm``.

    Args:
        folder: where ``vlm/`` goes.
        features: LeRobot input and output features; square images whose side is a multiple of twice the patch.
        chunk_size: T.
        tasks: sentences for the tokenizer.
        **settings: of ``build_vlm`` (``text_width`` ...), ``smolvla_config`` or LeRobot's ``SmolVLAConfig``.

    Raises:
        UserError: no camera or no proprioception, an image size that does not fit, an unknown setting.
    """
    from dataclasses import fields

    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    inputs = features[0]
    known = ["flow_steps", *VLM_SETTINGS, *(f.name for f in fields(SmolVLAConfig))]
    refuse_unknown("smolvla_nano", settings, known)
    sizes = {f.shape for f in inputs.values() if f.type.name == "VISUAL"}
    patch = settings.get("patch", 16)
    if len(sizes) != 1 or STATE not in inputs:
        raise UserError(
            f"smolvla_nano needs {STATE} and cameras of one size; the inputs are {', '.join(inputs)}"
        )
    _, height, width = sizes.pop()
    if height != width or height % (2 * patch):
        raise UserError(
            f"smolvla_nano needs square images with a multiple of {2 * patch} pixels, not {height}x{width}"
        )
    vlm = folder / VLM_FOLDER
    shape = {name: settings.pop(name) for name in VLM_SETTINGS if name in settings}
    build_vlm(vlm, image_size=height, tasks=tasks, **shape)
    return SmolVLAPolicy(
        smolvla_config(vlm, features=features, image_size=height, chunk_size=chunk_size, **settings)
    )


def build_smolvla_nano(
    out: Path,
    *,
    state_dim: int,
    action_dim: int,
    image_size: int = 96,
    cameras: Sequence[str] = ("base",),
    chunk_size: int = 16,
    tasks: Sequence[str] = (),
    seed: int = 0,
    **settings: Any,
) -> Path:
    """An untrained nano VLA as a complete, movable policy folder, with identity normalisation.

    Args:
        out: the folder; must not hold a policy yet.
        state_dim: S of ``observation.state``.
        action_dim: A.
        image_size: pixels, square.
        cameras: names (``observation.images.<name>``).
        chunk_size: T.
        tasks: sentences for the tokenizer.
        seed: of the weights.
        **settings: as ``nano_policy``.

    Returns:
        ``out``.

    Raises:
        UserError: ``out`` is taken, or a setting does not fit.
    """
    import torch
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import make_pre_post_processors

    if (out / "config.json").exists():
        raise UserError(f"{out} already holds a policy: choose another folder")
    inputs = {STATE: PolicyFeature(FeatureType.STATE, (state_dim,))}
    inputs |= {image_key(c): PolicyFeature(FeatureType.VISUAL, (3, image_size, image_size)) for c in cameras}
    outputs = {ACTION: PolicyFeature(FeatureType.ACTION, (action_dim,))}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nano_policy(out, features=(inputs, outputs), chunk_size=chunk_size, tasks=tasks, **settings)
    stats = {}
    for key, size in ((STATE, state_dim), (ACTION, action_dim)):
        stats[key] = {"mean": torch.zeros(size), "std": torch.ones(size)}
    before, after = make_pre_post_processors(model.config, dataset_stats=stats)
    save_policy(out, model, before, after)
    return out


def save_policy(folder: Path, model: Any, before: Any, after: Any) -> None:
    """Model, configuration and processors as a LeRobot policy folder that can be moved."""
    model.config.pretrained_path = None  # where its first weights lay on this machine
    model.save_pretrained(folder)
    before.save_pretrained(folder)
    after.save_pretrained(folder)
    for path in inside(folder):
        if (path / "model.safetensors").is_file():
            blank_weights(path)
    make_relative(folder)
