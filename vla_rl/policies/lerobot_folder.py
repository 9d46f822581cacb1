"""Find, check and load a LeRobot policy folder; every defect of it is one clear line."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vla_rl.errors import UserError
from vla_rl.policies.inside import inside, make_absolute

WEIGHTS = "model.safetensors"
PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")
JOINED = "state_has_environment"
"""Among the notes of ``vla-rl pretrain``."""
FLOW_STEPS = ("num_steps", "num_inference_steps", "num_denoising_steps")
"""Names LeRobot's policies give to the number of denoising steps."""


def local_folder(path: str | Path) -> Path:
    """The folder of a policy: as given, or the snapshot of a hub id.

    Raises:
        UserError: neither.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    own = folder.is_absolute() or str(path).startswith((".", "~", "assets/", "runs/", "data/"))
    if own or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        raise UserError(
            f"{path} is not there: policy.path names a LeRobot policy folder or a hub id (owner/name)"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path), ignore_patterns=["*.md", "*.mp4", "*.png", "optimizer*"]))
    except Exception as error:  # offline, no such id, gated: the hub has a class for each
        raise UserError(
            f"{path} is no folder here and the hub did not give it ({type(error).__name__}): check the name, the "
            "network, or copy the policy folder to this machine"
        ) from error


def register_types() -> None:
    """Make LeRobot know every policy type: its own, and ours."""
    import lerobot.policies  # noqa: F401

    import vla_rl.policies.gaussian_nano.configuration_gaussian_nano
    import vla_rl.policies.token_vla.configuration_token_vla
    import vla_rl.policies.token_vla.processor_token_vla  # noqa: F401  a step that saved pipelines name


def read_config(folder: Path, device: str = "cpu") -> Any:
    """``config.json`` as LeRobot's configuration class, with its VLM's path made absolute in memory.

    Raises:
        UserError: a file is missing or broken.
    """
    register_types()
    from lerobot.configs.policies import PreTrainedConfig

    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} is not a LeRobot policy: it has no config.json (policy.path names the folder)"
        )
    for name in (WEIGHTS, *PROCESSORS):
        if not (folder / name).is_file():
            remedy = (
                "copy the folder again"
                if name == WEIGHTS
                else "migrate a policy of LeRobot < 0.4 with its script"
            )
            raise UserError(f"{folder / name} is missing: {remedy}")
    try:
        config = PreTrainedConfig.from_pretrained(str(folder))
    except Exception as error:
        raise UserError(
            f"{folder / 'config.json'} cannot be read: {first_line(error)} (damaged, or of another LeRobot version)"
        ) from error
    config.device = device
    config.pretrained_path = folder
    make_absolute(config, folder)
    return config


def set_flow_steps(config: Any, steps: int) -> None:
    """Override the number of denoising steps.

    Raises:
        UserError: not positive, or a policy without a flow or diffusion head.
    """
    names = [n for n in FLOW_STEPS if hasattr(config, n)]
    if getattr(config, "objective", "") == "flow_matching":
        names = ["num_integration_steps"]
    if not names:
        raise UserError(
            f"policy.flow_steps={steps}: {config.type} has no flow or diffusion head; leave it unset"
        )
    if steps < 1:
        raise UserError(f"policy.flow_steps={steps} must be at least 1")
    setattr(config, names[0], steps)


def flow_steps_of(config: Any) -> int:
    """Denoising steps of a flow or diffusion head; 0 where it has none or does not say."""
    return int(next((value for name in FLOW_STEPS if (value := getattr(config, name, None))), 0))


def stored_names(file: Path) -> set[str]:
    """Tensor names in a safetensors file; reads only its header.

    Raises:
        UserError: truncated or not safetensors.
    """
    from safetensors import safe_open

    try:
        with safe_open(str(file), framework="pt") as tensors:
            return set(tensors.keys())
    except Exception as error:
        raise UserError(f"{file} is truncated or damaged ({first_line(error)}): copy it again") from error


def load_policy_folder(folder: Path, config: Any) -> tuple[Any, Any, Any]:
    """LeRobot's policy and its processors before and after.

    Raises:
        UserError: weights or processors do not load, or do not cover the model.
    """
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    stored = stored_names(folder / WEIGHTS)
    overrides: dict[str, Any] = {"device_processor": {"device": config.device}}
    built_on = getattr(config, "vlm_model_name", None) or getattr(config, "text_encoder_name", None)
    if built_on and inside(folder):
        overrides["tokenizer_processor"] = {"tokenizer_name": built_on}
    try:
        with contextlib.redirect_stdout(io.StringIO()), _quiet():  # LeRobot prints where it loads from
            model = get_policy_class(config.type).from_pretrained(str(folder), config=config)
    except Exception as error:  # shapes, imports and JSON alike
        raise UserError(
            f"{folder / WEIGHTS} does not load as {config.type}: {first_line(error)} "
            "(another LeRobot version or a changed config.json: retrain, or copy it again)"
        ) from error
    _check_covered(model, stored, folder)
    try:
        before, after = make_pre_post_processors(
            config,
            pretrained_path=str(folder),
            preprocessor_overrides=overrides,
            postprocessor_overrides={"device_processor": {"device": "cpu"}},
        )
    except Exception as error:
        raise UserError(
            f"the processors in {folder} do not load: {first_line(error)} (copy the folder again)"
        ) from error
    model.eval().requires_grad_(False)
    return model, before, after


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and reports: parts of a tower that a policy has no use for are no news."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _check_covered(model: Any, stored: set[str], folder: Path) -> None:
    """LeRobot only logs missing weights, and would act with random ones."""
    from lerobot.policies.pretrained import PreTrainedPolicy

    if type(model).from_pretrained.__func__ is not PreTrainedPolicy.from_pretrained.__func__:
        return  # it renames weights of older versions itself
    weights = model.state_dict()
    known = {weights[name].data_ptr() for name in stored if name in weights}
    missing = [n for n, w in weights.items() if n not in stored and w.numel() and w.data_ptr() not in known]
    if missing:
        raise UserError(
            f"{folder / WEIGHTS} lacks {len(missing)} weights of {model.config.type} (first: {missing[0]}): it is of "
            "another version or another config.json; retrain, or copy both again"
        )


def saved_rate(folder: Path) -> float | None:
    """Control rate in Hz that ``vla-rl pretrain`` noted; None when unknown."""
    return _notes(folder).get("rate_hz")


def joined(folder: Path) -> bool:
    """Whether ``observation.environment_state`` is the end of the policy's ``observation.state``."""
    return bool(_notes(folder).get(JOINED))


def _notes(folder: Path) -> dict[str, Any]:
    file = folder / "pretrain.json"
    try:
        return json.loads(file.read_text()) if file.is_file() else {}
    except ValueError:
        return {}


def time_steps(config: Any) -> int | None:
    """Number n when the model wants observations as [B, n, ...], None when as [B, ...]."""
    steps = int(getattr(config, "n_obs_steps", 1) or 1)
    return steps if steps > 1 or config.type in ("diffusion", "multi_task_dit", "vqbet") else None


def first_line(error: BaseException) -> str:
    """First line of an exception's text, or its class."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
