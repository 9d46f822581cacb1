"""Any LeRobot policy (SmolVLA, pi0, ACT, Diffusion ...) as a base, with its own processors."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from vla_rl.errors import UserError
from vla_rl.keys import ACTION, ENV_STATE, STATE, TASK
from vla_rl.policies.base import Observation, PolicySpec
from vla_rl.policies.heads import Head, head_of
from vla_rl.policies.lerobot_folder import (
    flow_steps_of,
    joined,
    load_policy_folder,
    local_folder,
    read_config,
    saved_rate,
    set_flow_steps,
    time_steps,
)
from vla_rl.policies.token_head import TokenHead

FIXED_SIZE = ("act", "diffusion", "multi_task_dit", "vqbet", "gaussian_nano")
"""Types whose network is built for one image size, unless their configuration resizes."""


class LeRobotPolicy:
    """Chunks [B, T, A] in environment units from a LeRobot policy folder or hub id.

    Observation images are uint8 and become float in [0, 1]; everything else (normalisation, tokenizer) is done by
    the processors saved with the policy, so a checkpoint carries all that it needs. It is frozen.

    Policies that decide on several observations (``history`` > 1) keep them in the state: ``history``: key ->
    [B, n, ...] and ``seen`` [B] int64; the first observation of an episode fills all n. Others have no state.

    Args:
        path: folder with ``config.json``, ``model.safetensors`` and processors, or a hub id.
        device: where it runs.
        flow_steps: denoising steps of flow and diffusion heads; None = as saved.
        rate_hz: control rate its actions are meant for; None = as ``vla-rl pretrain`` noted, if it did.

    Raises:
        UserError: missing or broken file, named with its remedy.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "cpu",
        flow_steps: int | None = None,
        rate_hz: float | None = None,
    ) -> None:
        folder = local_folder(path)
        config = read_config(folder, device)
        if flow_steps is not None:
            set_flow_steps(config, flow_steps)
        self.path, self.device, self.config = str(path), device, config
        self.model, self.before, self.after = load_policy_folder(folder, config)
        self._time_steps = time_steps(config)
        self.history = self._time_steps or 1
        self._image_shapes = _image_shapes(config)
        vectors = [k for k, f in config.input_features.items() if f.type.name in ("STATE", "ENV")]
        self._joined = joined(folder)
        if self._joined:
            vectors.append(ENV_STATE)
            if self.history > 1:
                raise UserError(f"{folder} joins {ENV_STATE} to its state and keeps a history: not supported")
        tokenizes = any("Tokenizer" in type(step).__name__ for step in self.before.steps)
        self.spec = PolicySpec(
            action_dim=config.output_features[ACTION].shape[0],
            chunk_length=_chunk_length(config),
            state_keys=tuple(vectors),
            image_keys=tuple(self._image_shapes),
            language=tokenizes or hasattr(config, "tokenizer_max_length"),
            rate_hz=saved_rate(folder) if rate_hz is None else rate_hz,
        )
        self.noise_shape = _noise_shape(config, self.model)
        self._guided, self._guiding = _guided(config, self.model), False
        self._head: Head | None = None
        self._token_head: TokenHead | None = None

    @property
    def head(self) -> Head:
        """Its denoising steps.

        Raises:
            UserError: a type without them.
        """
        self._head = self._head or head_of(self.model)
        return self._head

    def encode(self, observation: Observation, state: TensorDict) -> tuple[TensorDict, TensorDict]:
        """What ``head`` is conditioned on [B, ...], and the next state."""
        self._check(observation)
        state = self.observe(observation, state)
        with torch.no_grad():
            return self.head.encode(self._batch(observation, state)), state

    def actions_of(self, x: Tensor) -> Tensor:
        """Action chunks [B, T, A] in environment units, of the head's denoised ``x`` [B, T', A']."""
        first = self.head.first
        x = x[:, first : first + self.spec.chunk_length, : self.spec.action_dim]
        return self.after(x).float().cpu()

    @property
    def token_head(self) -> TokenHead:
        """Its words.

        Raises:
            UserError: a type without them.
        """
        self._token_head = self._token_head or TokenHead(self.model)
        return self._token_head

    def encode_tokens(self, observation: Observation, state: TensorDict) -> tuple[TensorDict, TensorDict]:
        """What ``token_head`` is conditioned on [B, ...], and the next state."""
        self._check(observation)
        with torch.no_grad():
            return self.token_head.encode(self._batch(observation, state)), state

    def instructions(self, condition: TensorDict) -> list[str]:
        """Of ``encode_tokens``' conditions [B], the sentences: the prompts' words without what all prompts have."""
        step: Any = next(step for step in self.before.steps if hasattr(step, "input_tokenizer"))
        before, after = (part.strip() for part in self.config.prompt.split("{task}"))
        texts = step.input_tokenizer.batch_decode(condition["words"], skip_special_tokens=True)
        return [text.strip().removeprefix(before).removesuffix(after).strip() for text in texts]

    def actions_of_tokens(self, tokens: Tensor) -> Tensor:
        """Action chunks [B, T, A] in environment units, of words [B, T A]."""
        return self.after(self.token_head.normalised(tokens)).float().cpu()

    def initial_state(self, batch_size: int) -> TensorDict:
        """Nothing for policies that see one step; an empty history for the others."""
        if self.history == 1:
            return TensorDict({}, batch_size=[batch_size])
        front = (batch_size, self.history)
        leaves: dict[str, Tensor] = {}
        for key in self.spec.state_keys:
            leaves[key] = torch.zeros(*front, *self.config.input_features[key].shape)
        for key, shape in self._image_shapes.items():
            leaves[key] = torch.zeros(*front, *shape, dtype=torch.uint8)
        parts = {
            "history": TensorDict(leaves, [batch_size]),
            "seen": torch.zeros(batch_size, dtype=torch.int64),
        }
        return TensorDict(parts, batch_size=[batch_size])

    def needs_images(self, state: TensorDict) -> Tensor:
        """Always, if it has cameras: wrap it in ``OpenLoop`` to look once per chunk."""
        return torch.full((state.batch_size[0],), bool(self.spec.image_keys))

    def observe(self, observation: Observation, state: TensorDict) -> TensorDict:
        """The state with one more observation in its history, without deciding."""
        if self.history == 1:
            return state
        self._check(observation)
        first = state["seen"] == 0
        leaves = {}
        for key in self.spec.state_keys + self.spec.image_keys:
            now = observation[key].unsqueeze(1)
            old = state["history", key]
            moved = torch.cat([old[:, 1:], now.to(old.dtype)], 1)
            leaves[key] = torch.where(first.view(-1, *[1] * (old.dim() - 1)), now.to(old.dtype), moved)
        size = state.batch_size
        return TensorDict({"history": TensorDict(leaves, size), "seen": state["seen"] + 1}, size)

    def act(
        self, observation: Observation, state: TensorDict, *, deterministic: bool = False
    ) -> tuple[TensorDict, TensorDict]:
        """``action`` [B, T, A]. Flow and diffusion heads draw their noise from torch's global generator."""
        return self._decide(observation, state)

    def act_from_noise(
        self, observation: Observation, state: TensorDict, noise: Tensor
    ) -> tuple[TensorDict, TensorDict]:
        """As ``act``, from the initial noise [B, *noise_shape].

        A DDPM sampler (LeRobot's Diffusion by default) also draws noise at each step; DDIM and flows do not.

        Raises:
            UserError: a policy that takes no noise, or noise of another shape.
        """
        if self.noise_shape is None:
            raise UserError(
                f"{self.config.type} does not act from a given noise: choose a flow policy (smolvla, pi0)"
            )
        wanted = (state.batch_size[0], *self.noise_shape)
        if tuple(noise.shape) != wanted:
            raise UserError(f"noise has shape {tuple(noise.shape)}, {self.config.type} needs {wanted}")
        return self._decide(observation, state, noise=noise.to(self.device))

    def check_continues(self) -> None:
        """Raises ``UserError`` unless LeRobot guides this type's flow (SmolVLA, pi0, pi05)."""
        if not self._guided:
            raise UserError(
                f"policy.rtc=true: LeRobot has no real-time chunking for {self.config.type}; "
                "set policy.rtc=false policy.blend=3, or take a flow policy (smolvla, pi0, pi05)"
            )

    def act_continuing(
        self,
        observation: Observation,
        state: TensorDict,
        left: Tensor,
        delay: int,
        noise: Tensor | None = None,
    ) -> tuple[TensorDict, TensorDict]:
        """As ``act``, with the flow guided to begin as ``left`` goes on (arXiv 2506.07339; LeRobot's RTC).

        Args:
            observation: of now.
            state: of this policy.
            left: actions not yet executed, in the environment's units [B, L, A].
            delay: of them, how many will be executed before the new chunk can be; they are kept, and the hold on the
                later ones falls off to nothing at L.
            noise: initial noise [B, *noise_shape]; None = drawn.

        Raises:
            UserError: a type that cannot.
        """
        self.check_continues()
        if not self._guiding:  # whatever the checkpoint says of it
            self._guide()
        given = {} if noise is None else {"noise": noise.to(self.device)}
        steps = left.shape[1]
        return self._decide(observation, state, left, inference_delay=delay, execution_horizon=steps, **given)

    def _guide(self) -> None:
        """Switch LeRobot's guidance on; chunks that have nothing to go on from stay as they were."""
        from lerobot.configs import RTCAttentionSchedule
        from lerobot.policies.rtc import RTCConfig

        # A weight above the number of flow steps would overshoot: each of them moves by 1 / number of steps.
        self.model.config.rtc_config = RTCConfig(
            prefix_attention_schedule=RTCAttentionSchedule.EXP,
            max_guidance_weight=float(flow_steps_of(self.config)),
        )
        self.model.init_rtc_processor()
        self._guiding = True

    def _decide(
        self, observation: Observation, state: TensorDict, left: Tensor | None = None, **kwargs: Any
    ) -> tuple[TensorDict, TensorDict]:
        self._check(observation)
        state = self.observe(observation, state)
        # Guidance needs gradients, which inference mode rules out for good.
        with torch.inference_mode() if left is None else torch.no_grad():
            batch = self._batch(observation, state, left)
            if left is not None:
                kwargs["prev_chunk_left_over"] = batch.pop(ACTION)
            if self._time_steps is not None:
                self._fill_queues(batch)
            try:
                chunk = self.model.predict_action_chunk(batch, **kwargs)
            finally:
                if self._time_steps is not None:
                    self.model.reset()
            chunk = self.after(chunk)[:, : self.spec.chunk_length].float().cpu()
        # Cloned outside inference mode: inference tensors could not enter an actor's graph later.
        return TensorDict({"action": chunk.clone()}, batch_size=[len(chunk)]), state

    def _batch(
        self, observation: Observation, state: TensorDict, left: Tensor | None = None
    ) -> dict[str, Any]:
        """LeRobot's batch: vectors and images [B, (n,) ...], normalised and tokenized; ``left`` as in training."""
        batch: dict[str, Any] = {}
        for key in self.spec.state_keys + self.spec.image_keys:
            if self._joined and key == ENV_STATE:
                continue
            value = self._vector(observation, key) if self.history == 1 else state["history", key]
            if self.history == 1 and self._time_steps is not None:
                value = value.unsqueeze(1)
            batch[key] = value.float() / 255 if key in self._image_shapes else value.float()
        batch[TASK] = list(observation.get(TASK, [""] * state.batch_size[0]))
        if left is not None:
            return self.before(batch | {ACTION: left.float()})
        batch = self.before(batch)
        batch.pop(ACTION, None)  # the processors add an empty one, which the models would stack
        return batch

    def _vector(self, observation: Observation, key: str) -> Tensor:
        """As the model reads it: its state may end in the environment's."""
        if self._joined and key == STATE:
            return torch.cat([observation[STATE], observation[ENV_STATE]], 1)
        return observation[key]

    def _fill_queues(self, batch: dict[str, Any]) -> None:
        """LeRobot's models with a history read it from queues; ours comes from the state at each call."""
        self.model.reset()
        if self._image_shapes:
            batch["observation.images"] = torch.stack(
                [batch[k] for k in self.model.config.image_features], dim=-4
            )
        for key, queue in self.model._queues.items():
            if key in batch and key != ACTION:
                queue.extend(batch[key].unbind(1))

    def _check(self, observation: Observation) -> None:
        for key in self.spec.state_keys + self.spec.image_keys:
            if key not in observation:
                have = ", ".join(k for k in observation if k != TASK) or "nothing"
                raise UserError(f"policy {self.path} needs {key}; the observation has {have}")
        for key in self.spec.state_keys + self.spec.image_keys:
            if self._joined and key == ENV_STATE:
                continue
            wanted = tuple(self.config.input_features[key].shape)
            found = tuple(observation[key].shape[1:])
            if self._joined and key == STATE and ENV_STATE in observation:
                found = (found[0] + observation[ENV_STATE].shape[1],)
            if found == wanted:
                continue
            if key not in self._image_shapes:
                raise UserError(
                    f"{key} has shape {found}, policy {self.path} needs {wanted}: another robot or env"
                )
            if self.history > 1 or (self.config.type in FIXED_SIZE and not _resizes(self.config)):
                raise UserError(
                    f"{key} is {found}, policy {self.path} needs {wanted}: set env.cameras to that size"
                )


def _image_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Cameras that must be there; LeRobot itself fills the ``empty_camera`` ones."""
    features = config.input_features.items()
    return {k: tuple(f.shape) for k, f in features if f.type.name == "VISUAL" and ".empty_camera_" not in k}


def _resizes(config: Any) -> bool:
    return any(getattr(config, name, None) for name in ("resize_shape", "image_resize_shape"))


def _chunk_length(config: Any) -> int:
    if config.type in ("diffusion", "multi_task_dit"):
        return int(config.n_action_steps)  # what they return of their horizon
    names = ("chunk_size", "action_chunk_size", "horizon")
    return int(next((v for n in names if (v := getattr(config, n, None))), 1))


def _noise_shape(config: Any, model: Any) -> tuple[int, int] | None:
    """(T', A') of the initial noise where the model takes one, else None."""
    takes = inspect.signature(model.predict_action_chunk).parameters
    if config.type in ("smolvla", "pi0", "pi05") and ("noise" in takes or "kwargs" in takes):
        return config.chunk_size, config.max_action_dim
    if config.type == "diffusion" and "noise" in takes:
        return config.horizon, config.action_feature.shape[0]
    return None


def _guided(config: Any, model: Any) -> bool:
    """Whether LeRobot's real-time chunking applies, and its chunks are the flow's own (not Aloha's, re-encoded)."""
    own = not getattr(config, "adapt_to_pi_aloha", False)
    return hasattr(config, "rtc_config") and model.supports_rtc() and own and flow_steps_of(config) > 0
