"""One place that turns ``policy=...`` of a configuration into a policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vla_rl.config import build, resolve_path
from vla_rl.environment import EnvSpec, VlaVectorEnv
from vla_rl.errors import UserError
from vla_rl.policies.base import Policy, check_compatible
from vla_rl.policies.specialists import Specialists


def load_base(config: Any, *, candidates: int = 1) -> Policy:
    """A LeRobot policy, here or behind ``vla-rl serve`` (``address``), executed ``config.horizon`` steps per chunk.

    Args:
        config: ``path``, ``horizon``, ``device``, ``flow_steps``, ``asynchronous``, ``rtc``, ``blend``.
        candidates: chunks drawn per decision.
    """
    from vla_rl.policies.lerobot import LeRobotPolicy
    from vla_rl.policies.open_loop import OpenLoop

    policy: Any
    if config.get("address"):
        from vla_rl.policies.remote import Remote

        names = ("token_file", "timeout", "patience", "authority")
        policy = Remote(config["address"], **{n: config[n] for n in names if config.get(n) is not None})
    else:
        if not config.get("path"):
            raise UserError("policy.path is not set: name a LeRobot policy folder, a hub id or a run folder")
        path = resolve_path(config["path"])
        policy = LeRobotPolicy(path, device=config.get("device", "cpu"), flow_steps=config.get("flow_steps"))
    if config.get("asynchronous"):
        from vla_rl.policies.asynchronous import Asynchronous

        if candidates > 1:
            raise UserError("policy.asynchronous plans one chunk at a time: set algorithm.candidates=1")
        return Asynchronous(
            policy,
            config.get("horizon"),
            rtc=bool(config.get("rtc")),
            blend=config.get("blend") or 0,
        )
    for key in ("rtc", "blend"):
        if config.get(key):
            raise UserError(f"policy.{key} joins chunks planned beside acting: set policy.asynchronous=true")
    return OpenLoop(policy, config.get("horizon"), candidates)


def load_teleoperator(config: Any, env: VlaVectorEnv) -> Any:
    """Who may take over in training, as ``teleop=...`` names it; None = nobody."""
    if config is None or not config.get("_target_"):
        return None
    from omegaconf import OmegaConf

    if not config.get("expert"):
        return build(config, env=env)
    expert = build(config.expert, env=env)
    config = OmegaConf.masked_copy(config, [key for key in config if key != "expert"])
    return build(config, expert=expert, spec=env.env_spec)


def is_run(path: Path) -> bool:
    """Whether a folder is one that ``vla-rl train`` wrote."""
    return (path / "checkpoints").is_dir() and (path / "config.yaml").is_file()


def load_policy(config: Any, env: VlaVectorEnv) -> Policy:
    """The policy that a configuration names, ready for ``env``.

    A node with ``_target_`` is instantiated with ``env`` (experts); ``path`` may be a run folder (the policy it
    has learned), a LeRobot policy folder or a hub id; ``paths`` names one for each task.

    Raises:
        UserError: nothing there, or it does not fit the environment.
    """
    if config.get("_target_"):
        policy = build(config, env=env)
    elif config.get("paths"):
        members = _of_tasks(config, env.env_spec, lambda one: load_policy(one, env))
        policy = Specialists(members)
    elif config.get("path") and is_run(resolve_path(config.path)):
        beside = {k: config[k] for k in ("asynchronous", "rtc", "blend", "horizon") if config.get(k)}
        policy = load_run(resolve_path(config.path), env, **beside)
    else:
        policy = load_base(config)
    check_compatible(policy.spec, env.env_spec)
    return policy


def load_run(run: Path, env: Any, **beside: Any) -> Policy:
    """The policy a run has learned, from its newest good checkpoint.

    Args:
        run: its folder.
        env: where it will act; its ``env_spec`` and ``num_envs`` are looked at.
        beside: ``asynchronous``, ``rtc``, ``blend``, ``horizon``, ``device`` of its base, in place of what it was trained with.

    Raises:
        UserError: the run has no usable checkpoint yet.
    """
    from omegaconf import OmegaConf

    from vla_rl.train import build_algorithm

    config = OmegaConf.load(run / "config.yaml")
    config.policy.update(beside)
    if "teacher" in config.algorithm:
        config.algorithm.teacher = False  # whoever taught it is not needed any more
    checkpoint = _newest(run, "yet: let it train longer, or name another run")
    algorithm = build_algorithm(config, env)
    load_newest(algorithm, run, checkpoint)
    return algorithm.eval_policy


def load_newest(algorithm: Any, run: Path, checkpoint: Path) -> None:
    """``checkpoint``, or what is the newest by then of a run that is still training and has removed it.

    Raises:
        UserError: it cannot be read and is still there, or there is none.
    """
    while True:
        try:
            return algorithm.load(checkpoint / "algorithm", replay=False)
        except UserError:
            if checkpoint.is_dir():
                raise
        checkpoint = _newest(run, "any more: is something deleting it?")


def _newest(run: Path, otherwise: str) -> Path:
    """The newest checkpoint that verifies (all of it is read for that)."""
    from vla_rl.runtime.run_folder import RunFolder

    checkpoint = RunFolder.latest_in(run)
    if checkpoint is None:
        raise UserError(f"{run} has no usable checkpoint {otherwise}")
    return checkpoint


def _of_tasks(config: Any, env_spec: EnvSpec, load: Callable[[Any], Policy]) -> dict[str, Policy]:
    """Instruction -> policy of ``config.paths`` (environment id or instruction -> path), the rest as ``config`` has it."""
    from omegaconf import OmegaConf

    if config.get("path") or config.get("address"):
        raise UserError("name either path or paths (one for each task), not both")
    paths = {env_spec.instruction_of(name): path for name, path in config["paths"].items()}
    missing = [task for task in env_spec.tasks if task not in paths]
    if missing:
        raise UserError(f"paths: no policy for the task '{missing[0]}' of {env_spec.id}")
    shared = {key: value for key, value in config.items() if key not in ("path", "paths")}
    members = {}
    for task, path in paths.items():
        try:
            members[task] = load(OmegaConf.create({**shared, "path": path}))
        except UserError as error:
            raise UserError(f"specialist for '{task}': {error}") from None
    return members


def load_teacher(config: Any, env_spec: EnvSpec) -> Policy:
    """Who teaches in the environment of ``env_spec``: ``path`` (LeRobot folder, hub id, run folder), ``paths`` of a specialist
    for each task, or ``address``; chunks if it has them.

    Raises:
        UserError: neither is named, or it does not fit the environment.
    """
    from types import SimpleNamespace

    from vla_rl.policies.open_loop import OpenLoop

    if config and config.get("paths"):
        return Specialists(_of_tasks(config, env_spec, lambda one: load_teacher(one, env_spec)))
    if not config or not (config.get("path") or config.get("address")):
        raise UserError(
            "algorithm.teacher.path is not set: name a policy folder, a hub id or a run folder, or teacher.address of a "
            "server, or in teacher.paths one for each task"
        )
    try:
        if config.get("path") and is_run(resolve_path(config["path"])):
            here = SimpleNamespace(env_spec=env_spec, num_envs=1)
            policy = load_run(resolve_path(config["path"]), here, device=config.get("device") or "cpu")
        else:
            policy = load_base(config)
        check_compatible(policy.spec, env_spec)
    except UserError as error:
        raise UserError(f"algorithm.teacher: {error}") from None
    return policy.base if isinstance(policy, OpenLoop) else policy
