"""Algorithms from configuration keys; ``configs/algorithm/*.yaml`` name these functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_rl.algorithms.dppo import DPPO, DPPOConfig
from vla_rl.algorithms.dsrl import DSRL, DSRLConfig
from vla_rl.algorithms.filtered_bc import FilteredBC, FilteredBCConfig
from vla_rl.algorithms.opd import OPD, OPDConfig
from vla_rl.algorithms.residual_td3 import ResidualTD3, ResidualTD3Config
from vla_rl.algorithms.rlpd import RLPD, RLPDConfig
from vla_rl.algorithms.rpd import RPD, RPDConfig
from vla_rl.algorithms.token_ppo import TokenPPO, TokenPPOConfig
from vla_rl.config import typed
from vla_rl.environment import EnvSpec
from vla_rl.errors import UserError
from vla_rl.policies.base import Policy


def _checked(device: str) -> str:
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"algorithm.device={device}: torch sees no CUDA device; set algorithm.device=cpu")
    return device


def _teacher(teacher: Any, env_spec: EnvSpec) -> Policy | None:
    if teacher is None or isinstance(teacher, Mapping):
        from vla_rl.policies.load import load_teacher

        return load_teacher(teacher, env_spec)
    return None if teacher is False else teacher


def residual_td3(
    base: Policy, env_spec: EnvSpec, num_envs: int, device: str = "cpu", **settings: Any
) -> ResidualTD3:
    """ResFiT and EXPO, networks and replay on ``device``; unknown settings fail with the nearest field."""
    return ResidualTD3(typed(ResidualTD3Config, settings), base, env_spec, num_envs, _checked(device))


def rlpd(base: Policy, env_spec: EnvSpec, num_envs: int, device: str = "cpu", **settings: Any) -> RLPD:
    """The same learner without its base, which is not used."""
    return RLPD(typed(RLPDConfig, settings), env_spec, num_envs, _checked(device))


def dppo(base: Policy, env_spec: EnvSpec, num_envs: int, device: str = "cpu", **settings: Any) -> DPPO:
    """PPO over the denoising steps of a diffusion or flow policy."""
    return DPPO(typed(DPPOConfig, settings), base, env_spec, num_envs, _checked(device))


def token_ppo(
    base: Policy, env_spec: EnvSpec, num_envs: int, device: str = "cpu", **settings: Any
) -> TokenPPO:
    """PPO over the action words of a token VLA."""
    return TokenPPO(typed(TokenPPOConfig, settings), base, env_spec, num_envs, _checked(device))


def opd(
    base: Policy,
    env_spec: EnvSpec,
    num_envs: int,
    device: str = "cpu",
    teacher: Any = None,
    **settings: Any,
) -> OPD:
    """On-policy distillation of a token policy; ``teacher`` is a policy, its ``path`` or ``address``, or False: only to act."""
    teacher = _teacher(teacher, env_spec)
    return OPD(typed(OPDConfig, settings), base, teacher, env_spec, num_envs, _checked(device))


def rpd(
    base: Policy,
    env_spec: EnvSpec,
    num_envs: int,
    device: str = "cpu",
    teacher: Any = None,
    **settings: Any,
) -> RPD:
    """PPO with a teacher's action in the loss; ``teacher`` is a policy, its ``path`` or ``address``, or False: only to act."""
    teacher = _teacher(teacher, env_spec)
    return RPD(typed(RPDConfig, settings), base, teacher, env_spec, num_envs, _checked(device))


def dsrl(base: Policy, env_spec: EnvSpec, num_envs: int, device: str = "cpu", **settings: Any) -> DSRL:
    """SAC over the initial noise of a frozen diffusion or flow policy."""
    return DSRL(typed(DSRLConfig, settings), base, env_spec, num_envs, _checked(device))


def filtered_bc(base: Policy, env_spec: EnvSpec, num_envs: int, **settings: Any) -> FilteredBC:
    """The same residual without a critic."""
    return FilteredBC(typed(FilteredBCConfig, settings), base, env_spec, num_envs)
