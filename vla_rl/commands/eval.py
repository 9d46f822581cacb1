"""vla-rl eval: success of a policy on fixed seeds, with a 95 % Wilson interval.

usage: vla-rl eval policy=... env=... [episodes=N] [seed=S] [json=FILE] [videos=DIR]

  policy.path=assets/smolvla-nano   any LeRobot policy folder or hub id
  policy.path=runs/NAME             the policy a run has learned (its newest good checkpoint)
  policy=specialists "policy.paths={drawer-open-v3:runs/a,reach-v3:runs/b}"
                                    one for each task
  policy=expert                     the scripted expert of the environment; policy.noise=0.3 as it records with that
  env=maniskill env.ids=[PushCube-v1]   see configs/env/ for the simulators
  episodes=100 seed=100000          the same seeds whatever the number of environments
  film=2 videos=DIR                 keep a video of the first episodes of each task

Examples:
  vla-rl eval policy.path=assets/smolvla-nano env=table episodes=90
  vla-rl eval policy.path=runs/demo env=table json=after.json
"""

from __future__ import annotations

from pathlib import Path

from vla_rl.config import build, compose
from vla_rl.runtime.metrics import write_json
from vla_rl.runtime.progress import track


def run(overrides: list[str]) -> int:
    """Evaluate and print; writes ``json`` and ``videos`` when asked."""
    from vla_rl.policies.ahead import importing_ahead
    from vla_rl.policies.load import load_policy
    from vla_rl.rollout.evaluate import evaluate
    from vla_rl.rollout.video import save_mp4
    from vla_rl.runtime.threads import set_threads

    config = compose("eval", overrides)
    set_threads(config.threads)
    disturbed = any(config.policy.get(name) for name in ("noise", "miss"))
    with importing_ahead(config):
        env = build(config.env)
    try:
        policy = load_policy(config.policy, env)
        with track("evaluate", config.episodes, unit="episode") as bar:
            result = evaluate(
                env,
                policy,
                config.episodes,
                config.seed,
                film=config.film,
                progress=lambda n, _: bar.update(n),
                deterministic=not disturbed,
            )
    finally:
        env.close()
    summary = result.summary()
    if env.stops:
        summary["safety_stops"] = list(env.stops)
        print(f"the arm was stopped {len(env.stops)} times; see safety_stops in json=FILE")
    for task, part in summary["per_task"].items():
        print(f"  {task:<28} {line(part)}")
    print(f"success {line(summary)}")
    if config.json:
        write_json(Path(config.json), summary)
        print(f"wrote {config.json}")
    if config.videos and result.videos:
        folder = Path(config.videos)
        folder.mkdir(parents=True, exist_ok=True)
        for (task, seed), frames in result.videos.items():
            save_mp4(frames, folder / f"{task}-{seed}.mp4", fps=int(env.env_spec.rate_hz))
        print(f"wrote {folder}")
    return 0


def line(part: dict) -> str:
    """'41/100 = 41.0 % (95 % interval 31.9-50.8 %)'."""
    low, high = part["wilson95"]
    return (
        f"{part['successes']}/{part['episodes']} = {100 * part['rate']:.1f} % "
        f"(95 % interval {100 * low:.1f}-{100 * high:.1f} %)"
    )
