"""Processors of ``token_vla``: the prompt, the tokenizer of its vision-language model, LeRobot's normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lerobot.processor import (
    ComplementaryDataProcessorStep,
    ProcessorStepRegistry,
    TokenizerProcessorStep,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)


@ProcessorStepRegistry.register(name="vla_rl_prompt")
@dataclass
class PromptStep(ComplementaryDataProcessorStep):
    """Each instruction put into a prompt.

    Attributes:
        prompt: with ``{task}`` in it.
    """

    prompt: str = "{task}"

    def complementary_data(self, complementary_data: dict[str, Any]) -> dict[str, Any]:
        """The same data, its ``task`` in the prompt."""
        task = complementary_data.get("task")
        if task is None:
            return complementary_data
        texts = [task] if isinstance(task, str) else list(task)
        asked = [self.prompt.replace("{task}", text) for text in texts]
        return complementary_data | {"task": asked[0] if isinstance(task, str) else asked}

    def get_config(self) -> dict[str, Any]:
        """What the saved pipeline needs."""
        return {"prompt": self.prompt}

    def transform_features(self, features: Any) -> Any:
        """They stay as they are."""
        return features


def make_token_vla_pre_post_processors(config: Any, dataset_stats: Any = None) -> tuple[Any, Any]:
    """Pipelines before and after the policy, with the data's statistics in them."""
    steps = make_default_policy_processor_steps(config, dataset_stats)
    before = [
        steps.rename_observations,
        steps.add_batch_dim,
        PromptStep(config.prompt),
        TokenizerProcessorStep(
            tokenizer_name=config.vlm_model_name,
            padding="max_length",
            padding_side="right",
            max_length=config.tokenizer_max_length,
        ),
        steps.to_device,
        steps.normalize,
    ]
    return make_policy_processor_pipelines(input_steps=before, output_steps=[steps.unnormalize, steps.to_cpu])
