"""vla-rl record: demonstrations or policy rollouts into a LeRobotDataset.

usage: vla-rl record env=... policy=expert episodes=N out=DIR [seed=S] [only_success=true]

  policy=expert policy.noise=0.1     the scripted expert, with human-like wandering
  policy.path=DIR                    any LeRobot policy, or a run folder
  episodes=60 seed=50000             episode i begins from seed + i
  out=data/table                     a LeRobotDataset v3; the same command again continues an interrupted one

  stills=3 stills_within=60          of each episode only so many steps, drawn from its first 60: pictures of many scenes, for
                                     train.vision_datasets of vla-rl pretrain; episodes=N is then how many scenes

Examples:
  vla-rl record env=table policy=expert policy.noise=0.1 episodes=300 out=data/table
  vla-rl record env=table policy.noise=0.5 episodes=600 stills=3 seed=90000 out=data/scenes
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_rl.config import build, compose
from vla_rl.runtime.progress import track


def run(overrides: list[str]) -> int:
    """Record and print a summary."""
    from vla_rl.errors import UserError
    from vla_rl.policies.ahead import importing_ahead
    from vla_rl.policies.intervened import Intervened
    from vla_rl.policies.load import load_policy, load_teleoperator
    from vla_rl.runtime.threads import set_threads

    config = compose("record", with_policy(overrides))
    if not config.get("out") or config.out == "???":
        raise UserError("out is not set: out=DIR names the dataset folder")
    set_threads(config.threads)
    with importing_ahead(config):
        env = build(config.env)
    try:
        policy, operator = load_policy(config.policy, env), load_teleoperator(config.get("teleop"), env)
        policy = policy if operator is None else Intervened(policy, operator)
        with track("record", config.episodes, unit="scene" if config.stills else "episode") as bar:
            summary = (_stills if config.stills else _episodes)(config, env, policy, bar)
    finally:
        env.close()
    print(", ".join(f"{key} {value}" for key, value in summary.items()))
    print(f"wrote {config.out}")
    return 0


def _episodes(config: Any, env: Any, policy: Any, bar: Any) -> dict[str, Any]:
    from vla_rl.data.record import record

    return record(
        env,
        policy,
        config.episodes,
        Path(config.out),
        seed=config.seed,
        only_success=config.only_success,
        max_attempts=config.attempts,
        deterministic=config.deterministic,
        journal=config.journal,
        progress=lambda seen: bar.update(seen["episodes"], attempts=seen["attempts"]),
    )


def _stills(config: Any, env: Any, policy: Any, bar: Any) -> dict[str, Any]:
    """A few pictures of each of many scenes."""
    from vla_rl.data.stills import record_stills

    return record_stills(
        env,
        policy,
        config.episodes,
        Path(config.out),
        stills=config.stills,
        within=config.stills_within,
        seed=config.seed,
        progress=bar.update,
    )


def with_policy(overrides: list[str]) -> list[str]:
    """``policy.path=`` alone means ``policy=lerobot``: the expert, whom ``record`` takes otherwise, has none."""
    named = any(o.startswith("policy=") for o in overrides)
    folder = any(o.startswith("policy.path=") for o in overrides)
    return ["policy=lerobot", *overrides] if folder and not named else overrides
