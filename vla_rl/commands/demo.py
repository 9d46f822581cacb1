"""vla-rl demo: the main job. Shipped VLA, residual RL, before/after report.

usage: vla-rl demo [name=demo] [seed=0] [key=value ...]

Evaluates the shipped base VLA on 100 episodes, improves it by residual off-policy RL for at most 15 minutes,
evaluates 100 other episodes and writes runs/<name>/report.html with curves and before/after video. Any setting
of `vla-rl train` may follow. Run it again with resume=runs/<name> after an interruption.

Examples:
  vla-rl demo
  vla-rl demo name=second seed=7
"""

from __future__ import annotations

SHORT = {"name": "run.name", "seed": "run.seed", "minutes": "run.minutes", "steps": "run.steps"}


def run(overrides: list[str]) -> int:
    """Train ``experiment=table`` into ``runs/demo``."""
    from vla_rl.commands.train import train

    resume = None
    settings = ["experiment=table"]
    named = False
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "resume":
            resume = value
            continue
        named |= key in ("name", "run.name")
        settings.append(f"{SHORT.get(key, key)}={value}")
    if not named:
        settings.append("run.name=demo")
    train([] if resume else settings, resume)
    return 0
