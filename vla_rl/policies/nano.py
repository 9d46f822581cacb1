"""Small bases in the same classes users have: LeRobot's SmolVLA at 3-6 million parameters, with no download.

A vision-language model directory (config, tokenizer, processor) is built locally and saved *inside* the policy
folder as ``vlm/``; ``config.json`` names it by that relative path, so the folder can be moved.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

VLM_FOLDER = "vlm"

CORPUS = """push pull lift pick place stack stand press open close turn reach insert put move take hold hang
unplug plug sweep slide drag lower raise rotate twist hit hammer assemble disassemble lock unlock kick throw drop
the a an cube block peg ball button door drawer window handle lever dial faucet nut ring basket shelf bin box can
cup plate mug bottle coffee machine wall hole stick soccer goal target table robot gripper arm charger receptacle
red green blue yellow black white orange purple grey left right front back top bottom side up down away towards
from to into onto on off of out over under with and it at in upright near far first then slowly gently"""
"""Words of robot instructions, from which the tokenizer is trained."""


def build_tokenizer(extra: Iterable[str] = ()) -> Any:
    """A byte-level BPE tokenizer over ``CORPUS`` and ``extra`` sentences, with SmolVLM's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    words = CORPUS.split()
    sentences = [" ".join(words[i : i + 8]) for i in range(len(words))] + list(extra) * 4
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        sentences,
        trainers.BpeTrainer(
            vocab_size=1024,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
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
    config = SmolVLMConfig(
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
        size=size, max_image_size=size, fps=1, num_frames=4, video_sampling={"fps": 1, "max_frames": 4, "video_size": size}
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
) -> Any:
    """LeRobot's ``SmolVLAConfig`` for a nano VLM; every weight trains.

    Args:
        vlm: directory from ``build_vlm``.
        features: LeRobot input and output features (``PolicyFeature`` by key).
        image_size: pixels, as given to ``build_vlm``.
        chunk_size: T, actions per chunk.
        flow_steps: Euler steps of the flow-matching head.
        expert_width_multiplier: width of the action expert relative to the language model.
        device: where it lives.
    """
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

    inputs, outputs = features
    state_dim = inputs["observation.state"].shape[0]
    action_dim = outputs["action"].shape[0]
    return SmolVLAConfig(
        input_features=inputs,
        output_features=outputs,
        vlm_model_name=str(vlm),
        load_vlm_weights=False,
        train_expert_only=False,
        freeze_vision_encoder=False,
        chunk_size=chunk_size,
        n_action_steps=chunk_size,
        max_state_dim=max(16, state_dim),
        max_action_dim=max(8, action_dim),
        resize_imgs_with_padding=(image_size, image_size),
        tokenizer_max_length=24,
        num_steps=flow_steps,
        num_vlm_layers=-1,
        expert_width_multiplier=expert_width_multiplier,
        push_to_hub=False,
        device=device,
    )


def vlm_path(policy_folder: Path) -> Path | None:
    """The VLM directory inside a saved policy folder, if it has one."""
    inside = policy_folder / VLM_FOLDER
    return inside if (inside / "config.json").is_file() else None


def make_relative(policy_folder: Path) -> None:
    """Rewrite absolute paths of the VLM in a saved policy's JSON files to ``vlm`` so that it can be moved."""
    if vlm_path(policy_folder) is None:
        return
    for file in policy_folder.glob("*.json"):
        data = json.loads(file.read_text())
        changed = _replace_paths(data)
        if changed != data:
            file.write_text(json.dumps(changed, indent=2) + "\n")


def _replace_paths(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: VLM_FOLDER
            if key in ("vlm_model_name", "tokenizer_name") and isinstance(value, str) and Path(value).name == VLM_FOLDER
            else _replace_paths(value)
            for key, value in node.items()
        }
    return [_replace_paths(value) for value in node] if isinstance(node, list) else node
