"""Any LeRobot policy (SmolVLA, pi0, ACT, Diffusion ...) as a base, with its own processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.errors import UserError
from vla_rl.keys import IMAGES, TASK
from vla_rl.policies.base import Observation, PolicySpec
from vla_rl.policies.nano import vlm_path


class LeRobotPolicy:
    """Chunks [B, T, A] in environment units from a LeRobot policy folder or hub id.

    Observation images are uint8 and become float in [0, 1]; everything else (normalisation, tokenizer) is done by
    the processors saved with the policy, so a checkpoint carries all that it needs.

    Args:
        path: folder with ``config.json`` and ``model.safetensors``, or a hub id.
        device: where it runs.
        flow_steps: denoising steps of flow heads; None = as saved.

    Raises:
        UserError: missing or broken file, named with its remedy.
    """

    def __init__(self, path: str | Path, *, device: str = "cpu", flow_steps: int | None = None) -> None:
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors

        folder = Path(path)
        self.path = str(path)
        config = self._config(folder, device)
        overrides: dict[str, Any] = {"device_processor": {"device": device}}
        vlm = vlm_path(folder)
        if vlm is not None:
            config.vlm_model_name = str(vlm)
            overrides["tokenizer_processor"] = {"tokenizer_name": str(vlm)}
        if flow_steps is not None:
            if not hasattr(config, "num_steps"):
                raise UserError(f"policy.flow_steps: {config.type} has no flow head")
            config.num_steps = flow_steps
        try:
            self.model = get_policy_class(config.type).from_pretrained(self.path, config=config)
            self.before, self.after = make_pre_post_processors(
                config, pretrained_path=self.path, preprocessor_overrides=overrides
            )
        except Exception as error:  # safetensors, JSON, shape and import errors alike
            raise UserError(f"cannot load policy {path}: {str(error).splitlines()[0]} (copy it again, or retrain)") from error
        self.model.eval().requires_grad_(False)
        self.config, self.device = config, device
        images = tuple(k for k in config.input_features if k.startswith(IMAGES))
        vectors = tuple(k for k in config.input_features if not k.startswith(IMAGES))
        self.spec = PolicySpec(
            action_dim=config.output_features["action"].shape[0],
            chunk_length=getattr(config, "chunk_size", None) or getattr(config, "horizon", 1),
            state_keys=vectors,
            image_keys=images,
            language=vlm is not None or hasattr(config, "tokenizer_max_length"),
        )
        self.n_obs_steps = int(getattr(config, "n_obs_steps", 1))
        if self.n_obs_steps > 1:
            self.spec = _replace_chunk(self.spec, config)

    @staticmethod
    def _config(folder: Path, device: str) -> Any:
        from lerobot.configs.policies import PreTrainedConfig

        local = folder.exists() or folder.is_absolute() or str(folder).startswith((".", "assets/", "runs/"))
        if local and not (folder / "config.json").is_file():
            raise UserError(f"{folder} is not a LeRobot policy: it has no config.json (policy.path names the folder)")
        for name in ("config.json", "model.safetensors") if local else ():
            if not (folder / name).is_file():
                raise UserError(f"{folder / name} is missing: copy the policy folder again")
        try:
            config = PreTrainedConfig.from_pretrained(str(folder))
        except Exception as error:
            raise UserError(f"cannot read policy {folder}: {str(error).splitlines()[0]}") from error
        config.device = device
        config.pretrained_path = str(folder)
        return config

    def initial_state(self, batch_size: int) -> TensorDict:
        """Empty for policies that see one step; the observation history [B, n, ...] for the others."""
        return TensorDict({}, batch_size=[batch_size])

    def needs_images(self, state: TensorDict) -> Tensor:
        """Always, if it has cameras: wrap it in ``OpenLoop`` to look once per chunk."""
        return torch.full((state.batch_size[0],), bool(self.spec.image_keys))

    @torch.inference_mode()
    def act(
        self, observation: Observation, state: TensorDict, *, deterministic: bool = False
    ) -> tuple[TensorDict, TensorDict]:
        """``action`` [B, T, A]. Flow and diffusion heads draw their noise from torch's global generator."""
        chunk = self._predict(self._batch(observation))
        return TensorDict({"action": chunk.clone()}, batch_size=[len(chunk)]), state

    @torch.inference_mode()
    def act_from_noise(self, observation: Observation, noise: Tensor) -> Tensor:
        """Chunk [B, T, A] that follows from the initial noise [B, T, A'] (flow heads), A' as the model pads it.

        Raises:
            UserError: a policy that takes no noise.
        """
        return self._predict(self._batch(observation), noise=noise.to(self.device)).clone()

    def _batch(self, observation: Observation) -> dict[str, Any]:
        batch: dict[str, Any] = {key: observation[key].float() for key in self.spec.state_keys}
        for key in self.spec.image_keys:
            batch[key] = observation[key].float() / 255
        batch[TASK] = list(observation.get(TASK, [""] * len(next(iter(batch.values())))))
        return self.before(batch)

    def _predict(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        try:
            chunk = self.model.predict_action_chunk(batch, **kwargs)
        except TypeError as error:
            if kwargs:
                raise UserError(f"{self.config.type} takes no initial noise") from error
            raise
        return self.after(chunk).float().cpu()


def _replace_chunk(spec: PolicySpec, config: Any) -> PolicySpec:
    from dataclasses import replace

    return replace(spec, chunk_length=int(config.n_action_steps))
