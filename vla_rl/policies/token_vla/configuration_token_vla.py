"""Configuration of ``token_vla``."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode
from lerobot.configs.policies import PreTrainedConfig
from lerobot.optim import AdamWConfig


@PreTrainedConfig.register_subclass("token_vla")
@dataclass
class TokenVLAConfig(PreTrainedConfig):
    """OpenVLA's recipe on any ``AutoModelForImageTextToText``.

    Attributes:
        vlm_model_name: hub id or folder of the vision-language model.
        load_vlm_weights: begin from its weights; False = at random (nano models, or when the policy's own weights follow).
        chunk_size: T.
        n_action_steps: of it, how many LeRobot's own loop executes.
        bins: words of the action vocabulary; each number of an action is one.
        fast: of FAST words instead (``vla_rl.policies.fast_tokens``), as text; then ``bins`` is how many there are.
        blur: standard deviation of the Gaussian over neighbouring bins that cloning aims at, in normalised actions (-1..1), in place of
            the one bin: for few demonstrations, and for what reinforcement learning explores with afterwards. 0 = the one bin.
        temperature: of sampling; greedy where a policy is asked to be deterministic.
        prompt: what the model is asked; ``{task}`` is the instruction.
        tokenizer_max_length: of the prompt, in tokens.
        image_size: pixels that pictures are resized to; None = the vision tower's own.
        image_mean: of the normalisation that the vision tower was trained with.
        image_std: the same.
        lora_rank: of low-rank adapters (peft) on the language model; 0 = all weights train.
        freeze_vision: keep vision tower and projector as they are.
    """

    vlm_model_name: str = "OpenGVLab/InternVL3-1B-hf"
    load_vlm_weights: bool = True
    chunk_size: int = 8
    n_action_steps: int = 8
    bins: int = 256
    fast: str = ""
    blur: float = 0.0
    temperature: float = 1.0
    prompt: str = "What should the robot do to {task}?"
    tokenizer_max_length: int = 48
    image_size: int | None = None
    image_mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    image_std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    lora_rank: int = 0
    freeze_vision: bool = False
    # Actions between their 1st and 99th percentile become -1 ... 1, which the bins divide evenly.
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ENV": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.QUANTILES,
        }
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("chunk_size", "tokenizer_max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.bins < 2:
            raise ValueError(f"bins={self.bins} must be at least 2")
        if self.blur < 0 or (self.blur and self.fast):
            raise ValueError(
                f"blur={self.blur} must not be negative, and FAST words have no neighbours: set 0"
            )
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be above 0")
        if "{task}" not in self.prompt:
            raise ValueError(f"prompt={self.prompt!r} has no {{task}} in it")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank={self.lora_rank} must not be negative")

    @property
    def observation_delta_indices(self) -> None:
        """One observation."""
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        """The chunk."""
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """None are read."""
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        """For LeRobot's own training loop."""
        return AdamWConfig(lr=1e-4 if self.load_vlm_weights else 1e-3, weight_decay=1e-4)

    def get_scheduler_preset(self) -> None:
        """None."""
        return None

    def validate_features(self) -> None:
        """Raises ``ValueError`` without an action or a camera."""
        if self.action_feature is None or not self.image_features:
            raise ValueError("token_vla needs an action and at least one camera")
