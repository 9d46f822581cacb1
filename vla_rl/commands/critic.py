"""vla-rl critic: VLAC, a vision-language critic: progress and done from pictures and a sentence.

usage: vla-rl critic train datasets=[DIR,...] train.start=DIR out=DIR [key=value ...]
       vla-rl critic eval path=DIR datasets=[DIR,...] [references=[DIR,...]] [json=FILE] [out=PAGE.html]
       vla-rl critic calibrate path=DIR datasets=[DIR,...] [recall=0.97] [precision=0.98]
       vla-rl critic score path=DIR datasets=[DIR,...] out=DIR [least_voc=0.5] [least_done=0.5] [drop=0.1]
       vla-rl critic turns path=DIR out=DIR env=... policy=... [turns=3] [settings of vla-rl train]

  train   teach a token VLA to judge: which of two pictures is closer to what the sentence asks for and by how much, and whether
          it is done; record failed episodes too (vla-rl record only_success=false), they teach what is not done
  eval    order correlation with time (VOC) on episodes it has not seen, on videos played backwards, on tasks it was not trained
          on with and without one reference episode; done's precision and recall; refused mismatches; value curves over video
  calibrate   set the threshold of done for each task on episodes it has not seen, failures among them
  score   rank recorded episodes, and mask frames that lead back; vla-rl pretrain progress=DIR leaves those out
  turns   critic and policy in turns, for one task: records experts, misses and the policy itself, trains the critic on them, then the policy
          on the critic alone; where it exploits the critic, records that and trains both again (configs/critic_turns.yaml)

A critic is a reward for every learner: vla-rl train reward=vlac reward.path=DIR (docs/critic.md).

Examples:
  vla-rl critic train datasets=[data/table] train.start=assets/token-nano out=runs/critic
  vla-rl critic eval path=runs/critic datasets=[data/table-test] json=critic.json out=critic.html
  vla-rl critic calibrate path=runs/critic datasets=[data/rollouts]
  vla-rl critic score path=runs/critic datasets=[data/human] out=data/human-scores
  vla-rl critic turns path=assets/vlac-near out=runs/turns env=metaworld env.ids=[window-open-v3] env.cameras=[corner2] env.zoom=1.5 policy=lerobot policy.path=runs/base
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_rl.config import compose, nearest, resolve_path, typed
from vla_rl.errors import UserError
from vla_rl.runtime.metrics import write_json
from vla_rl.runtime.progress import track


def run(overrides: list[str]) -> int:
    """Start what the first word names."""
    kinds = {"train": _train, "eval": _eval, "calibrate": _calibrate, "score": _score}
    word = overrides[0] if overrides else ""
    if word == "turns":
        _turns(overrides[1:])
        return 0
    if word not in kinds:
        raise UserError(f"vla-rl critic {word}: {nearest(word, [*kinds, 'turns'])} (vla-rl critic --help)")
    from vla_rl.runtime.threads import set_threads

    config = compose(f"critic_{word}", overrides[1:])
    set_threads(config.threads)
    kinds[word](config)
    return 0


def turns_apart(overrides: list[str]) -> tuple[list[str], list[str]]:
    """Those of ``critic turns`` itself, and those of ``vla-rl train``."""
    own = set(compose("critic_turns", []))
    mine = [o for o in overrides if o.lstrip("+~").partition("=")[0].partition(".")[0] in own]
    return mine, [o for o in overrides if o not in mine]


def _train(config: Any) -> None:
    from vla_rl.critic.train import CriticConfig, CriticTrainer
    from vla_rl.critic.trajectories import read_trajectories
    from vla_rl.pretrain_data import Samples

    out = Path(config.out)
    if out.exists():
        raise UserError(f"{out} exists: choose another out=")
    settings = typed(CriticConfig, config.train, "train.")
    folders = [resolve_path(d) for d in config.datasets]
    trajectories = read_trajectories(folders, config.camera, config.stride, scratch=out.absolute().parent)
    trainer = CriticTrainer(
        settings, trajectories, out, Samples.read(folders) if settings.act_weight else None
    )
    print(
        f"{len(trajectories)} episodes of {len(trainer.draws.tasks)} tasks, {len(trainer.kept)} kept to calibrate done"
    )
    if trainer.resume():
        print(f"continuing at step {trainer.step}")
    recent: dict[str, list[float]] = {}
    with track("critic", settings.steps, unit="step") as bar:

        def show(step: int, losses: dict[str, float]) -> None:
            for name, value in losses.items():
                recent[name] = [*recent.get(name, [])[-99:], value]
            fields: dict[str, Any] = {
                f"{name}_loss": f"{sum(last) / len(last):.3f}" for name, last in recent.items()
            }
            bar.update(step, **fields)

        trainer.learn(show)
    print(f"wrote {out}")


def _eval(config: Any) -> None:
    from vla_rl.critic.evaluate import evaluate
    from vla_rl.critic.model import Critic
    from vla_rl.critic.page import write_page
    from vla_rl.critic.trajectories import read_trajectories

    critic = Critic.load(config.path)
    folders, shown = ([resolve_path(d) for d in given] for given in (config.datasets, config.references))
    room = Path(config.json or config.out or "page").absolute().parent
    trajectories = read_trajectories(folders, config.camera, config.stride, scratch=room)
    references = read_trajectories(shown, config.camera, config.stride, scratch=room) if shown else []
    with track("judge", len(trajectories), unit="episode") as bar:
        summary, curves = evaluate(critic, trajectories, references, bar.update)
    for name, value in summary.items():
        if isinstance(value, float):
            print(f"{name:<32} {value:.3f}")
    for task, row in summary["per_task"].items():
        print(f"  {task:<48} " + "  ".join(f"{k} {v:.2f}" for k, v in row.items()))
    if summary["flat"]:
        print("the critic says the same to every picture: do not trust it on this camera or arm")
    if config.json:
        write_json(Path(config.json), summary)
        print(f"wrote {config.json}")
    if config.out:
        print(f"wrote {write_page(Path(config.out), summary, curves, config.most)}")


def _calibrate(config: Any) -> None:
    from vla_rl.critic.train import calibrate
    from vla_rl.critic.trajectories import read_trajectories

    for name in ("recall", "precision"):
        if not 0 < config[name] <= 1:
            raise UserError(f"{name}={config[name]} must be in 0..1")
    folder = resolve_path(config.path)
    folders = [resolve_path(d) for d in config.datasets]
    trajectories = read_trajectories(folders, config.camera, scratch=folder if folder.is_dir() else None)
    for task, threshold in calibrate(folder, trajectories, config.precision, config.recall).items():
        print(f"{threshold:.3f}  {task}" + ("  never sure enough" if threshold > 1 else ""))
    print(f"wrote {folder / 'critic.json'}")


def _score(config: Any) -> None:
    from vla_rl.critic.model import Critic
    from vla_rl.critic.score import score
    from vla_rl.data.dataset import dataset_info

    critic = Critic.load(config.path)
    folders = [resolve_path(d) for d in config.datasets]
    count = sum(int(dataset_info(folder).get("total_episodes") or 0) for folder in folders)
    with track("judge", count, unit="episode") as bar:
        found = score(
            critic,
            folders,
            Path(config.out),
            camera=config.camera,
            least_voc=config.least_voc,
            least_done=config.least_done,
            drop=config.drop,
            progress=bar.update,
        )
    for each in sorted(found, key=lambda s: -s.voc):
        mark = "" if each.kept else "  left out"
        print(
            f"VOC {each.voc:+.2f}  end {each.value:.2f}  done {each.done:.2f}  back {each.negative:.0%}  {each.name}{mark}"
        )
    print(f"{sum(s.kept for s in found)} of {len(found)} episodes kept; wrote {config.out}")


def _turns(overrides: list[str]) -> None:
    from vla_rl.critic.turns import Turns

    mine, training = turns_apart(overrides)
    result = Turns(compose("critic_turns", mine), training).take()
    for number, turn in enumerate(result["turns"], 1):
        success = "-" if turn["success"] is None else f"{100 * turn['success']:.0f} %"
        wrong = f"of what the critic believed at the end {100 * turn['false']:.0f} % was wrong"
        ended = f"stopped: {turn['stopped']}" if turn["stopped"] else wrong
        print(f"turn {number}: {turn['episodes']} episodes, true success {success}, {ended}")
    print(f"critic {result['critic']}, policy {result['policy']}")
