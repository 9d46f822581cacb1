"""Configuration of ``gaussian_nano``."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode
from lerobot.configs.policies import PreTrainedConfig
from lerobot.optim import AdamWConfig


@PreTrainedConfig.register_subclass("gaussian_nano")
@dataclass
class GaussianNanoConfig(PreTrainedConfig):
    """An MLP on vectors, and on features of cameras where there are any.

    Attributes:
        chunk_size: T.
        n_action_steps: of it, how many LeRobot's own loop executes.
        modes: M Gaussians; 1 = no mixture.
        hidden: hidden widths.
        std_first: standard deviation before cloning, in normalised actions.
        std_min: least that cloning may learn.
        std_max: greatest.
        camera_features: width of the image vector per camera.
        encoder: of cameras, ``vit``, ``conv`` or ``keypoints``.
    """

    chunk_size: int = 16
    n_action_steps: int = 16
    modes: int = 1
    hidden: list[int] = field(default_factory=lambda: [256, 256, 256])
    std_first: float = 0.2
    std_min: float = 0.05
    std_max: float = 0.5
    camera_features: int = 64
    encoder: str = "vit"
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ENV": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MIN_MAX,
        }
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("modes", "chunk_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 < self.std_min <= self.std_first <= self.std_max:
            raise ValueError(
                f"std_min={self.std_min}, std_first={self.std_first}, std_max={self.std_max}: "
                "must be positive and in this order"
            )

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
        return AdamWConfig(lr=1e-3, weight_decay=1e-4)

    def get_scheduler_preset(self) -> None:
        """None."""
        return None

    def validate_features(self) -> None:
        """Raises ``ValueError`` without an action or any input."""
        if self.action_feature is None or not self.input_features:
            raise ValueError("gaussian_nano needs an action and at least one input")
