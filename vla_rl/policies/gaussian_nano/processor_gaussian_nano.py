"""Processors of ``gaussian_nano``: LeRobot's default ones, which normalise."""

from __future__ import annotations

from typing import Any

from lerobot.processor import make_default_pre_post_processors


def make_gaussian_nano_pre_post_processors(config: Any, dataset_stats: Any = None) -> tuple[Any, Any]:
    """Pipelines before and after the policy, with the data's statistics in them."""
    return make_default_pre_post_processors(config, dataset_stats, normalizer_device=config.device)
