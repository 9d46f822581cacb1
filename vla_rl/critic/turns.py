"""Critic and policy in turns: the policy learns from the critic alone, and the critic from what the policy fooled it with.

A policy that is paid for "done" goes where the critic is wrong. The audit stops such a training, or finds at its end that too
much of what the critic believed in was wrong; what the policy does there is recorded with the truth (a simulator's, or a
person's on a robot) and added to what the critic has seen. After one or two turns it holds (``benchmarks/results/vlac``).

Every part is a ``vla-rl`` command of its own, kept once finished: stopped at any moment, the same command goes on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vla_rl.config import compose, nearest, resolve_path
from vla_rl.errors import UserError
from vla_rl.runtime.metrics import read_metrics, write_json
from vla_rl.runtime.stages import Command, call, trained
from vla_rl.train import EXPLOITED

SEEDS = {"expert": 50_000, "miss": 55_000, "base": 60_000, "wild": 65_000}
"""Where the scenes of each kind begin."""

TURN_SEEDS = 70_000
"""Where the scenes of the first turn's recording begin; those of each further turn a thousand later."""

TURNS = "turns.json"
"""What the turns came to, in their folder."""

FIXED = ("experiment", "resume", "reward", "run.name", "run.root", "run.threads")
"""Settings of ``vla-rl train`` that turns make themselves."""


def falsely_believed(run: Path) -> float:
    """Share of the successes that a run's critic believed in at its end, by its audit, that were none."""
    shares = [row["false_done"] for row in read_metrics(run / "metrics.jsonl") if "false_done" in row]
    return float(shares[-1]) if shares else 0.0


class Turns:
    """Recordings, critics and runs in ``config.out``.

    Args:
        config: ``configs/critic_turns.yaml``.
        training: overrides of ``vla-rl train``: environment and base policy, and what else is not to be as ``config.training`` says.
        command: how commands are run; otherwise in processes of their own.

    Raises:
        UserError: no critic at ``path``, a count or kind that cannot be, or a setting that ``vla-rl train`` does not know.
    """

    def __init__(self, config: Any, training: list[str], command: Command = call) -> None:
        usual = list(config.training)
        if any(o.startswith("algorithm=") for o in training):
            usual = [o for o in usual if not o.startswith("algorithm")]
        self.config, self.command = config, command
        self.training = [*usual, *training, f"run.threads={config.threads}"]
        self.out, self.log = Path(config.out), Path(config.out) / "log.txt"
        if not (resolve_path(config.path) / "config.json").is_file():
            raise UserError(f"path={config.path} is no critic's folder (vla-rl critic train)")
        if config.turns < 1:
            raise UserError(f"turns={config.turns}: at least 1")
        if not 0 <= config.wrong <= 1:
            raise UserError(f"wrong={config.wrong} must be in 0..1: a share")
        if unfit := [o for o in training if o.partition("=")[0] in FIXED]:
            raise UserError(
                f"{unfit[0]}: critic turns sets this itself; name env=, policy=, algorithm= and their settings"
            )
        if unknown := [kind for kind in config.kinds if kind not in SEEDS]:
            raise UserError(f"kinds.{unknown[0]}: {nearest(unknown[0], SEEDS)}")
        compose("train", [*self.training, "reward=vlac", f"reward.path={config.path}"])

    def take(self) -> dict[str, Any]:
        """Record, train the critic, train the policy, and so on until it holds or ``turns`` are over.

        Returns:
            What ``out/turns.json`` says: ``turns`` (of each the run, its critic, its success, why it was stopped),
            ``critic`` and ``policy`` (the last folders), ``held`` (whether the last turn went to its end and its
            critic was right often enough), ``over`` (whether that was the last).

        Raises:
            UserError: a command failed.
        """
        config = self.config
        critic, data = resolve_path(config.path), [resolve_path(d) for d in config.datasets]
        if config.first_steps:
            data += [self._recorded(kind) for kind, count in config.kinds.items() if count]
            critic = self._taught(1, critic, data, int(config.first_steps))
        result: dict[str, Any] = {"turns": []}
        for turn in range(1, int(config.turns) + 1):
            run = self._trained(turn, critic)
            report = json.loads((run / "report.json").read_text())
            stopped, wrong = report.get("stopped"), falsely_believed(run)
            result["turns"].append(
                {"run": str(run), "critic": str(critic), "episodes": report["episodes"]}
                | {"stopped": stopped, "success": (report["final"] or {}).get("rate"), "false": wrong}
            )
            held = stopped is None and wrong <= config.wrong
            over = held or turn == config.turns
            result |= {"critic": str(critic), "policy": str(run), "held": held, "over": over}
            write_json(self.out / TURNS, result)
            if over:
                break
            exploited = run / EXPLOITED
            policy = _acting(exploited if exploited.is_dir() else run)
            seen = f"data-fooled-{turn}"
            data.append(self._record(seen, policy, int(config.episodes), TURN_SEEDS + 1000 * turn))
            critic = self._taught(turn + 1, critic, data, int(config.turn_steps))
        return result

    def _trained(self, turn: int, critic: Path) -> Path:
        """The policy's training with this critic as its reward."""
        run = self.out / f"run-{turn}"
        trained(run, [*self.training, "reward=vlac", f"reward.path={critic}"], self.command)
        return run

    def _taught(self, turn: int, start: Path, data: list[Path], steps: int) -> Path:
        """The critic of a turn: ``start`` trained further on ``data``."""
        out = self.out / f"critic-{turn}"
        if not (out / "critic.json").is_file():
            named = f"datasets=[{','.join(map(str, data))}]"
            own = [f"train.start={start}", f"train.steps={steps}", f"threads={self.config.threads}"]
            settings = _flat("train", self.config.train)
            self.command(["critic", "train", named, f"out={out}", *own, *settings], self.log)
        return out

    def _recorded(self, kind: str) -> Path:
        """The recording of one of ``kinds``."""
        expert = ["policy=expert", f"policy.noise={self.config.noise.get(kind, 0)}"]
        if kind == "expert":
            policy = expert
        elif kind == "miss":
            policy = [*expert, f"policy.miss={self.config.miss}"]
        elif kind == "base":
            policy = self._of("policy")
        else:
            policy = _acting(self._exploring())
        return self._record(f"data-{kind}", policy, int(self.config.kinds[kind]), SEEDS[kind])

    def _exploring(self) -> Path:
        """A few steps of the policy's training, by the truth."""
        run = self.out / "wild"
        few = [
            f"run.steps={self.config.wild_steps}",
            "run.base_episodes=0",
            "run.final_episodes=0",
            "run.film=0",
        ]
        true = [o for o in self.training if not o.startswith("reward.")]
        trained(run, [*true, *few], self.command)
        return run

    def _record(self, name: str, policy: list[str], count: int, seed: int) -> Path:
        out = self.out / name
        if not (out / "meta" / "info.json").is_file():
            asked = [f"episodes={count}", f"attempts={count}", "only_success=false", f"seed={seed}"]
            own = [f"env.after_success={self.config.after_success}", f"threads={self.config.threads}"]
            self.command(["record", *self._of("env"), *policy, *asked, *own, f"out={out}"], self.log)
        return out

    def _of(self, group: str) -> list[str]:
        """The overrides of ``env`` or ``policy``."""
        return [o for o in self.training if o.partition("=")[0].partition(".")[0] == group]


def _acting(run: Path) -> list[str]:
    return ["policy=lerobot", f"policy.path={run}"]


def _flat(name: str, node: Any) -> list[str]:
    """A configuration node as overrides."""
    if not hasattr(node, "items"):
        return [f"{name}={node}"]
    return [override for key, value in node.items() for override in _flat(f"{name}.{key}", value)]
