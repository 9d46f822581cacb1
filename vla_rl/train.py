"""The one training loop: collect, update, evaluate, checkpoint; resumable bit for bit on CPU.

At every checkpoint the episodes in flight are closed as truncated (their frames stay in replay, nothing is lost)
and new ones begin, so that a resumed run and an uninterrupted one see the same environments.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from tensordict import TensorDict

from vla_rl.algorithms.base import make_updates, tell_discount
from vla_rl.config import build, resolve_path
from vla_rl.environment import VlaVectorEnv
from vla_rl.errors import UserError
from vla_rl.learner.remote import RemoteLearner
from vla_rl.policies.intervened import Intervened
from vla_rl.policies.load import load_base, load_teleoperator
from vla_rl.rollout.collector import Collector, Episode
from vla_rl.rollout.curriculum import curriculum_of
from vla_rl.rollout.evaluate import Evaluation, evaluate
from vla_rl.runtime.checkpoints import folder_name
from vla_rl.runtime.distributed.settings import learners_of, places_of, places_of_one, share_of_one
from vla_rl.runtime.run_folder import RunFolder
from vla_rl.runtime.seeding import rng_state, seed_everything, set_rng_state
from vla_rl.schedule import Schedule, Stage

WINDOW = 100
"""Episodes in the moving training success."""

EXPLOITED = "exploited"
"""Folder, in a run's own, of the policy that the audit stopped; itself a run folder to act from."""

TRAIN_SEEDS = 10_000_000
"""Training episodes begin from seeds above this; evaluation and demonstration seeds lie below."""


def build_algorithm(config: Any, env: VlaVectorEnv) -> Any:
    """The algorithm of a configuration, around its base policy, for the rows of all its collectors (of several learners: of
    the first one's).
    """
    candidates = int(config.algorithm.get("candidates", 1) or 1)
    base = load_base(config.policy, candidates=candidates)
    algorithm, rows = config.algorithm, env.num_envs
    if distributed(config):
        settings: Any = OmegaConf.to_container(algorithm, resolve=True)
        algorithm = OmegaConf.create(share_of_one(settings, learners_of(config)))
        rows *= places_of_one(places_of(config), learners_of(config))
    built: Any = build(algorithm, base=base, env_spec=env.env_spec, num_envs=rows)
    tell_discount(env, built)
    return built


def distributed(config: Any) -> bool:
    """Whether ``launcher=ray``.

    Raises:
        UserError: a name where there are only single settings left.
    """
    launcher = config.get("launcher") or {}
    if isinstance(launcher, str):
        raise UserError(
            f"launcher={launcher}: a run that is resumed has single settings: launcher.kind={launcher}"
        )
    return launcher.get("kind", "local") == "ray"


def in_own_process(algorithm: Any, config: Any, env: VlaVectorEnv, run: RunFolder) -> RemoteLearner:
    """``algorithm`` with its learner in a process of its own (``run.learner=process``)."""

    def newest() -> Path | None:
        checkpoint = run.latest_checkpoint()
        return checkpoint / "algorithm" if checkpoint else None

    settings = OmegaConf.to_container(config.algorithm, resolve=True)
    assert isinstance(settings, dict)
    return RemoteLearner(
        algorithm,
        settings,  # type: ignore[arg-type]
        env.env_spec,
        env.num_envs,
        run.path / "journal",
        newest,
        seed=int(config.run.seed),
        threads=config.run.threads or 1,
    )


@dataclass
class Progress:
    """What a run has done so far; saved with every checkpoint."""

    steps: int = 0
    episodes: int = 0
    seconds: float = 0.0
    interventions: int = 0
    safety_stops: int = 0
    recent: list[bool] = field(default_factory=list)

    def success(self) -> float | None:
        """Moving training success, if any episode has ended."""
        return sum(self.recent) / len(self.recent) if self.recent else None


class Trainer:
    """One run.

    Args:
        config: composed configuration (``env``, ``policy``, ``algorithm``, ``demonstrations``, ``teleop``, ``schedule``,
            ``curriculum``, ``run``).
        run: its folder.
        env: the batch of environments.
        on_progress: called after every vector step with the ``Progress`` and the newest metrics.
        eval_env: for the evaluations on the way; None = ``env``, whose episodes in flight are closed for them.

    Raises:
        UserError: settings that do not fit together.
    """

    def __init__(
        self,
        config: Any,
        run: RunFolder,
        env: VlaVectorEnv,
        on_progress: Callable[[Progress, dict[str, float]], None] | None = None,
        eval_env: VlaVectorEnv | None = None,
    ) -> None:
        self.config, self.run, self.env, self.on_progress = config, run, env, on_progress
        self.eval_env = eval_env or env
        longest = env.env_spec.max_episode_steps * env.num_envs
        if eval_env is None and 0 < config.run.eval_every < longest:
            raise UserError(
                f"run.eval_every={config.run.eval_every}: every evaluation closes the episodes in flight, and one of "
                f"{env.num_envs} rows x {env.env_spec.max_episode_steps} steps would never end; set it to {longest} or "
                "more, or run.eval_env=own"
            )
        seed_everything(int(config.run.seed))
        self.algorithm = build_algorithm(config, env)
        shown = config.get("demonstrations")
        if shown and shown.get("episodes") and not getattr(self.algorithm, "takes_demonstrations", True):
            raise UserError(
                f"{type(self.algorithm).__name__} learns from its own decisions alone: set demonstrations=none, or "
                "pretrain on them"
            )
        learner = config.run.get("learner", "inline")
        if learner not in ("inline", "process"):
            raise UserError(f"run.learner={learner}: choose from inline, process")
        if learner == "process":
            self.algorithm = in_own_process(self.algorithm, config, env, run)
        self.progress = Progress()
        self.recent: deque[bool] = deque(maxlen=WINDOW)
        scene = self._scenes(learner)
        first = TRAIN_SEEDS * (1 + int(config.run.seed))
        operator = load_teleoperator(config.get("teleop"), env)
        self.schedule = Schedule(config, env, self.algorithm, operator, run.path)
        self.curriculum = curriculum_of(config.get("curriculum"), env, int(config.run.seed))
        if self.curriculum and (self.schedule.hard is not None or config.algorithm.get("group")):
            raise UserError(
                "curriculum chooses the task of every episode, and so do algorithm.group and schedule.hard_share: leave one out"
            )
        policy = self.algorithm.policy
        self.watched = operator is not None
        self._logged = (0, 0)
        self._stops_before = 0
        self.trusted: Path | None = None
        """Newest checkpoint from a time when success was to be believed."""
        self.collector = Collector(
            env,
            policy if operator is None else Intervened(policy, operator),
            lambda episode, row: first + scene(episode, row),
            sink=self._observe if self.watched else self.algorithm.observe,
            on_episode=self._episode,
            starts=self.schedule if self.schedule.stages else None,
            tasks=self.curriculum,
        )
        self.metrics: dict[str, float] = {}

    def _scenes(self, learner: str) -> Callable[[int, int], int]:
        """(episode, row) -> number of its scene: all different, unless the algorithm compares episodes of one scene."""
        if not self.config.algorithm.get("group"):
            return lambda episode, row: episode
        if learner == "process":
            raise UserError("algorithm.group chooses the scenes that are played: set run.learner=inline")
        if self.config.get("schedule") and self.config.schedule.get("stages"):
            raise UserError("algorithm.group compares episodes of one scene: set schedule=none")
        groups: Any = self.algorithm.groups  # type: ignore[attr-defined]
        groups.arrange(self.env.task_ids())
        return lambda episode, row: groups.begin(row)

    def _observe(self, frames: TensorDict, rows: torch.Tensor) -> None:
        self.progress.interventions += int((frames["intervention"] & ~frames["final"]).sum())
        self.algorithm.observe(frames, rows)

    def _episode(self, episode: Episode) -> None:
        if episode.interrupted:
            return
        self.progress.episodes += 1
        if self.curriculum is not None:
            self.curriculum.ended(episode.task_id, episode.success)
        if episode.returned:  # harder than the task itself: not its success
            return
        self.recent.append(episode.success)
        self.progress.recent = list(self.recent)

    def close(self) -> None:
        """End the learner's process, if it has one."""
        if isinstance(self.algorithm, RemoteLearner):
            self.algorithm.close()

    # ---- parts ------------------------------------------------------------------------------------------

    def demonstrate(self) -> int:
        """Fill the demonstration buffer as ``config.demonstrations`` says; returns how many episodes."""
        from vla_rl.data.collect_demonstrations import demonstrations_of

        return demonstrations_of(self.config.demonstrations, self.env, self.algorithm)

    def evaluate(
        self, episodes: int, seed: int, *, film: int = 0, base: bool = False, progress: Any = None
    ) -> Evaluation:
        """Success on fixed seeds of the present policy, or of the frozen ``base`` alone."""
        policy = self.algorithm.eval_policy
        with self.env.truth():
            return evaluate(
                self.env,
                self.algorithm.base if base else policy,
                episodes,
                seed,
                film=film,
                progress=progress,
            )

    def learn(self) -> None:
        """Collect and update until ``run.steps`` (or ``run.minutes``) is reached; checkpoints on the way."""
        run, progress = self.config.run, self.progress
        began, before = time.monotonic(), progress.seconds
        if isinstance(self.algorithm, RemoteLearner):
            self.checkpoint()  # demonstrations and what a journal gave back
        self._stages(playing=False)
        self.collector.begin()
        next_log = progress.steps + run.log_every
        next_checkpoint = (progress.steps // run.checkpoint_every + 1) * run.checkpoint_every
        next_evaluation = (progress.steps // run.eval_every + 1) * run.eval_every if run.eval_every else None
        while progress.steps < run.steps:
            self.collector.step(meanwhile=self._update)
            progress.steps += self.env.num_envs
            progress.seconds = before + time.monotonic() - began
            if self.on_progress is not None:
                self.on_progress(progress, self.metrics)
            if progress.steps < run.steps:
                self._stages(playing=True)
            if progress.steps >= next_log:
                next_log += run.log_every
                self._log()
            late = run.minutes is not None and progress.seconds > 60 * run.minutes
            if self.env.halt:
                print(f"stopped: {self.env.halt}", flush=True)
                late = True
            evaluating = next_evaluation is not None and progress.steps >= next_evaluation
            # An arm does not wait for a learner that is being started again.
            due = progress.steps >= next_checkpoint and not self._learner_starting()
            closing = due or late or (evaluating and self.eval_env is self.env)
            if closing:
                self.collector.cut()
            if evaluating:
                assert next_evaluation is not None
                next_evaluation += run.eval_every
                pause = time.monotonic()
                self._evaluate_midway()
                began += time.monotonic() - pause
            if closing:
                next_checkpoint = (progress.steps // run.checkpoint_every + 1) * run.checkpoint_every
                saved = self.checkpoint()
                if self.env.halt:
                    self.go_back(saved)
                if late:
                    break
                self.collector.begin()
        else:
            self.collector.cut()
            if isinstance(self.algorithm, RemoteLearner):
                self.algorithm.settle()
            self.checkpoint()

    def _learner_starting(self) -> bool:
        return isinstance(self.algorithm, RemoteLearner) and self.algorithm.starting

    def _stages(self, *, playing: bool) -> None:
        """Begin the stages whose time has come; those of updates are gone through here and now."""
        steps, seconds = self.progress.steps, self.progress.seconds
        began, waited = time.monotonic(), False
        while (stage := self.schedule.offline(steps)) is not None:
            if playing and not waited:
                self.collector.cut()
            waited = True
            self.run.log(steps, seconds=seconds + time.monotonic() - began, stage=stage.name)
            values = self._replay(stage)
            self.run.log(steps, seconds=seconds + time.monotonic() - began, stage=stage.name, **values)
        if self.schedule.apply(steps):
            self.run.log(steps, seconds=seconds + time.monotonic() - began, **self.schedule.metrics())
        if playing and waited:
            self.collector.begin()

    def _replay(self, stage: Stage) -> dict[str, float]:
        """The learner's updates on the demonstrations alone; its metrics, averaged over the newest hundred."""
        assert stage.updates is not None
        newest: deque[dict[str, torch.Tensor]] = deque(maxlen=100)
        for done in range(stage.updates):
            newest.append(self.algorithm.update_offline())
            if self.on_progress is not None and done % 50 == 0:
                self.on_progress(self.progress, self.metrics)
        self.schedule.replayed += 1
        return {name: float(torch.stack([row[name] for row in newest]).mean()) for name in newest[0]}

    def _update(self) -> None:
        due = self.algorithm.updates_due()
        # The critic-only updates after the warm-up come in slices, so that progress stays visible.
        most = due if self.algorithm.on_policy else 16 * self.env.num_envs
        self.metrics |= make_updates(self.algorithm, min(due, most))

    def _log(self) -> None:
        progress = self.progress
        values = {"seconds": progress.seconds, "episodes": progress.episodes} | self.metrics
        if progress.recent:
            values["success"] = progress.success()
        if self.watched:
            steps, taken = self._logged
            values["intervention"] = (progress.interventions - taken) / max(1, progress.steps - steps)
            self._logged = progress.steps, progress.interventions
        progress.safety_stops = self._stops_before + len(self.env.stops)
        if progress.safety_stops:
            values["safety_stops"] = progress.safety_stops
        values |= self.schedule.metrics() | self.env.metrics()
        if self.curriculum is not None:
            values |= self.curriculum.metrics()
        self.run.log(progress.steps, **values)

    def _evaluate_midway(self) -> None:
        run = self.config.run
        policy = self.algorithm.eval_policy
        with self.eval_env.truth():
            result = evaluate(self.eval_env, policy, run.eval_episodes, run.eval_seed).summary()
        self.run.log(self.progress.steps, evaluation=result, seconds=self.progress.seconds)

    # ---- checkpoints ------------------------------------------------------------------------------------

    def checkpoint(self, more: dict[str, Any] | None = None) -> Path:
        """Write everything; atomic. ``more`` goes into ``trainer.json``."""
        self.progress.safety_stops = self._stops_before + len(self.env.stops)

        def write(folder: Path, trusted: str | None) -> None:
            self.algorithm.save(folder / "algorithm")
            if self.schedule.stages:
                self.schedule.save(folder)
            if self.curriculum is not None:
                self.curriculum.save(folder)
            state = {
                "progress": self.progress.__dict__,
                "episodes_started": self.collector.episodes_started,
                "rng": rng_state(),
                "trusted": trusted,
            } | (more or {})
            (folder / "trainer.json").write_text(json.dumps(state))

        saved = self.store(write, self.env.trusted and not self.env.halt)
        self.run.exhibit(self.env.exhibits())
        return saved

    def store(self, write: Callable[[Path, str | None], None], believed: bool) -> Path:
        """Make what ``write(folder, trusted)`` writes the newest checkpoint; ``trusted`` names the one to go back to.

        That is this one, if success is to be ``believed`` now; an older one that is to be gone back to is spared.
        """
        steps, run = self.progress.steps, self.config.run
        name = folder_name(steps) if believed else self.trusted and self.trusted.name
        saved = self.run.save_checkpoint(
            steps, lambda folder: write(folder, name), int(run.keep_checkpoints), self.trusted
        )
        if believed:
            self.trusted = saved
        return saved

    def go_back(self, now: Path) -> None:
        """To the newest policy from a time when success was to be believed; the one of ``now`` is kept in ``exploited``.

        What it does shows a critic what it takes for success (``vla-rl critic turns``).
        """
        before = self.trusted
        if before is None or before == now or isinstance(self.algorithm, RemoteLearner):
            return
        self.algorithm.load(before / "algorithm", replay=False)
        print(
            f"going back to the policy of step {int(before.name)}, the last that was to be believed",
            flush=True,
        )
        self.run.set_aside(now, EXPLOITED)
        self.checkpoint()

    def restore(self, checkpoint: Path) -> None:
        """Continue from a checkpoint folder."""
        self.algorithm.load(checkpoint / "algorithm")
        state = json.loads((checkpoint / "trainer.json").read_text())
        self.progress = Progress(**state["progress"])
        trusted = checkpoint.parent / (state.get("trusted") or "none")
        self.trusted = trusted if trusted.is_dir() else None
        self._logged = self.progress.steps, self.progress.interventions
        self._stops_before = self.progress.safety_stops
        self.recent.extend(self.progress.recent)
        self.collector.episodes_started = state["episodes_started"]
        if self.schedule.stages:
            self.schedule.load(checkpoint)
        if self.curriculum is not None:
            self.curriculum.load(checkpoint)
        self.run.truncate_metrics(self.progress.steps)
        set_rng_state(state["rng"])
        if isinstance(self.algorithm, RemoteLearner):
            self._recount(self.algorithm.recovered)

    def _recount(self, recovered: list[tuple[TensorDict, torch.Tensor]]) -> None:
        """Steps and episodes after the checkpoint, which a journal gave back."""
        self.progress.steps = self.algorithm.steps
        for frames, _ in recovered:
            self.progress.interventions += int((frames["intervention"] & ~frames["final"]).sum())
            self.recent.extend([True] * int((frames["terminated"] & (frames["reward"] > 0)).sum()))
            self.progress.episodes += int((frames["terminated"] | frames["truncated"]).sum())
            self.recent.extend([False] * int((frames["truncated"] & ~frames["terminated"]).sum()))
        # Those in flight were begun too, and are not played again.
        self.collector.episodes_started += self.env.num_envs if recovered else 0
        self.collector.episodes_started += sum(int(f["final"].sum()) for f, _ in recovered)
        self.progress.recent = list(self.recent)


def open_run(config: Any, resume: str | None, yaml: str) -> tuple[RunFolder, Path | None]:
    """A new run folder, or the one to resume with its newest good checkpoint.

    Raises:
        UserError: the folder exists and ``resume`` was not given, or there is nothing to resume.
    """
    if resume is None:
        return RunFolder.create(Path(config.run.root), config.run.name, yaml), None
    folder = resolve_path(resume)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"resume={resume}: no run there (it would hold config.yaml)")
    run = RunFolder.open(folder)
    return run, run.latest_checkpoint()
