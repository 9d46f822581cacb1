"""``vla-rl bench faults``: at least 200 faults into a recorded session, and three questions.

Was a limit ever exceeded (asked of the arm's own log and of an independent witness of the commands)? Was a step lost
that had been finished before the last finished one (steps are counted by the witness)? Did everything either go on by
itself, or stop with a clear line and go on with the same command?
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from real.bench.evidence import lost_steps, violations
from real.bench.stage import Stage
from real.bench.training_faults import FAULTS, disturb
from vla_rl.config import compose, nearest
from vla_rl.errors import UserError
from vla_rl.runtime.metrics import write_json

ROBOT = "sim_arm"
"""Only there can faults be injected at will."""

GOES_ON = 20.0
"""Seconds within which a session goes on by itself, or ends with a line."""


class Faults:
    """One method per fault: brings it about and, where a fault ends, ends it.

    Args:
        stage: what is disturbed.
        rng: moments.
    """

    def __init__(self, stage: Stage, rng: random.Random) -> None:
        self.stage, self.rng = stage, rng

    def _for(self, seconds: float, **parameters: Any) -> None:
        for name, value in parameters.items():
            self.stage.set(name, value)
        time.sleep(seconds)
        for name, value in parameters.items():
            self.stage.set(name, type(value)(0))

    def kill_policy(self) -> None:
        """SIGKILL to the process of policy and recording."""
        self.stage.kill_session()

    def kill_arm(self) -> None:
        """SIGKILL to the arm's process: no joint states, no pictures, nobody who follows."""
        self.stage.nodes.kill("sim_arm")

    def kill_safety(self) -> None:
        """SIGKILL to the safety node."""
        self.stage.nodes.kill("safety")

    def kill_controller(self) -> None:
        """The arm's controller ignores all commands for a second; its drives hold."""
        self._for(1.0, kill_controller=True)

    def frozen_camera(self) -> None:
        """No pictures for a while that the session may wait out."""
        self._for(self.rng.uniform(0.4, 1.5), freeze_camera=True)

    def dead_camera(self) -> None:
        """No pictures for longer than that."""
        self._for(7.0, freeze_camera=True)

    def lost_states(self) -> None:
        """No joint states for a while."""
        self._for(self.rng.uniform(0.2, 1.0), drop_states=1.0)

    def packet_loss(self) -> None:
        """Half of all messages to and from the arm are lost."""
        self._for(2.0, drop_states=0.5, drop_commands=0.5, drop_frames=0.5)

    def clock_jump(self) -> None:
        """The arm's clock jumps by seconds, to either side, and back."""
        self._for(self.rng.uniform(0.2, 1.0), clock_offset=self.rng.choice([-30.0, -1.0, 1.0, 30.0]))

    def shuffled_joints(self) -> None:
        """Joints in another order in each message."""
        self._for(1.0, shuffle_joints=True)

    def _policy(self, kind: str) -> None:
        self.stage.fault.publish(self.stage.String(data=kind))
        time.sleep(0.5)

    def nan_action(self) -> None:
        """The policy gives NaN."""
        self._policy("nan_action")

    def huge_action(self) -> None:
        """The policy gives a million times the range."""
        self._policy("huge_action")

    def exception(self) -> None:
        """The policy raises."""
        self._policy("exception")

    def full_disk(self) -> None:
        """No space left on the session's file system until the session has ended or 5 s have passed."""
        disk = self.stage.work / "disk"
        filler = disk / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as handle:
            block = bytes(1 << 20)
            while True:
                handle.write(block)
        with contextlib.suppress(OSError), open(filler, "ab", buffering=0) as handle:
            while handle.write(b"0" * 4096):
                pass
        until = time.monotonic() + 5
        while self.stage.alive() and time.monotonic() < until:
            time.sleep(0.05)
        filler.unlink()

    def teleoperator_gone(self) -> None:
        """The device falls silent while its dead-man button is held; later it is heard again, released."""
        stage = self.stage

        def say(held: int, seconds: float) -> None:
            for _ in range(int(seconds * 20)):
                message = stage.Joy(axes=[0.3, 0.3, 0.0, 0.3], buttons=[0, 0, 0, 0, held, 0, 0])
                message.header.stamp = stage.link.stamp()
                stage.joy.publish(message)
                time.sleep(0.05)

        say(1, 0.8)
        time.sleep(1.0)
        steps = stage.steps
        time.sleep(0.2)
        moving = stage.speed()
        if moving > 0.05 and stage.steps > steps:  # not on its way home, between episodes
            raise UserError(f"the arm moves at {moving:.2f} rad/s although the device is gone")
        say(0, 0.3)


def run(overrides: list[str]) -> int:
    """Disturb, count, write; exit code 1: a limit exceeded, a step lost, or something that did not come back."""
    config = compose("bench_faults", overrides)
    for name in config.faults:
        if not hasattr(Faults, name) or name.startswith("_"):
            known = [n for n in vars(Faults) if not n.startswith("_")]
            raise UserError(f"faults.{name}: {nearest(name, known)}")
    for name in config.training_faults:
        if name not in FAULTS:
            raise UserError(f"training_faults.{name}: {nearest(name, FAULTS)}")
    rng = random.Random(config.seed)
    order = [name for name, count in config.faults.items() for _ in range(count)]
    rng.shuffle(order)
    work, out = Path(config.work).resolve(), Path(config.out)
    with small_disk(work) as disk:
        if not disk:
            print("full_disk is left out: mounting a small file system takes root")
            order = [name for name in order if name != "full_disk"]
        session = [f"out={work}/disk/session", "policy=expert", "launch=false", "teleop=joy"]
        session += ["policy._target_=real.bench.unreliable.Unreliable"]
        stage = Stage(ROBOT, work, [*session, "episodes=100000"])
        results: list[dict[str, Any]] = []
        try:
            stage.repair()
            faults = Faults(stage, rng)
            for number, name in enumerate(order, 1):
                time.sleep(rng.uniform(0.3, 1.5))
                results.append(one(stage, name, getattr(faults, name)))
                print(f"{number}/{len(order)} {name}: {results[-1]['how']}", flush=True)
                if results[-1]["how"].startswith("unrecovered"):
                    stage.close()
                    stage = Stage(ROBOT, work, [*session, "episodes=100000"])
                    stage.repair()
                    faults.stage = stage
            stage.kill_session()
            finish(stage, session)
            lost, seen = lost_steps(work / "steps.f64", work / "disk/session/dataset")
            # Kept already: whatever becomes of the training, an hour of faults is not thrown away.
            report = report_of(results, violations(stage.contract, work), lost, seen, {"lost": 0})
            write_json(out / "results.json", report)
            trained, kept = disturb(stage, ROBOT, dict(config.training_faults), rng, GOES_ON)
        finally:
            stage.close()
    report = report_of(results + trained, violations(stage.contract, work), lost, seen, kept)
    write_json(out / "results.json", report)
    for row in report["rows"]:
        print(f"{row['name']:<18} {row['ours']}")
    print(f"wrote {out / 'results.json'}")
    return int(any(row["ours"] for row in report["rows"][1:]))


def one(stage: Stage, name: str, inject: Callable[[], None]) -> dict[str, Any]:
    """Inject one fault and see what becomes of it."""
    began, start = time.monotonic(), stage.starts
    try:
        inject()
        if name in ("kill_arm", "kill_safety"):
            time.sleep(2.0)  # what was on its way arrives
        if name != "kill_policy" and stage.alive() and stage.playing(GOES_ON):
            how = "went on by itself"
        elif name == "kill_policy":
            stage.repair()
            how = "went on with the same command"
        elif stage.alive():
            raise UserError("the session neither goes on nor ends")
        else:
            words = stage.last_words()
            if not words or "Traceback" in words:
                raise UserError(f"the session ended without a clear line: {words}")
            stage.repair()
            how = f"stopped ({words}), went on with the same command"
    except UserError as error:
        how = f"unrecovered: {error}"
    how = how.replace(f"{stage.work}/", "")  # no path of this machine in a result
    return {"fault": name, "how": how, "seconds": time.monotonic() - began, "start": start}


def finish(stage: Stage, session: list[str]) -> None:
    """One more episode, and the data set is complete."""
    done = len(list((stage.work / "disk/session/dataset.recording/episodes").glob("*.npz")))
    if describe_stopped(stage):
        stage.repair()
        stage.kill_session()
    command = [*stage.session_command[:5], *session, f"episodes={done + 2}"]
    with open(stage.work / "last.log", "wb") as log:
        code = subprocess.run(command, stdout=log, stderr=log, env=os.environ, check=False).returncode
    if code:
        raise UserError(f"the last session ended with {code}: see {stage.work / 'last.log'}")


def describe_stopped(stage: Stage) -> bool:
    """Whether safety has latched a stop."""
    from real.safety_node import describe

    return describe(stage.state)[0] == "stopped"


@contextlib.contextmanager
def small_disk(work: Path) -> Any:
    """``work``, empty, with a file system of its own in ``work/disk`` where that is allowed; says whether."""
    disk = work / "disk"
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        subprocess.run(["umount", "-l", str(disk)], check=True, capture_output=True)
    shutil.rmtree(work, ignore_errors=True)
    disk.mkdir(parents=True)
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3g", "none", str(disk)], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def report_of(
    results: list[dict[str, Any]],
    exceeded: dict[str, int],
    lost: list[dict[str, Any]],
    seen: int,
    training: dict[str, Any],
) -> dict[str, Any]:
    """The four rows, and what each fault came to."""
    bad = [r for r in results if r["how"].startswith("unrecovered")]
    values = {
        "injected": len(results),
        "limit_violations": sum(exceeded.values()),
        "steps_lost": sum(e["lost"] for e in lost) + training["lost"],
        "unrecovered": len(bad),
    }
    kinds = sorted({r["fault"] for r in results})
    each = {
        kind: {
            "injected": sum(r["fault"] == kind for r in results),
            "went_on_by_itself": sum(
                r["fault"] == kind and r["how"].startswith("went on by itself") for r in results
            ),
            "unrecovered": sum(r["fault"] == kind for r in bad),
        }
        for kind in kinds
    }
    return {
        "rows": [{"name": k, "ours": v} for k, v in values.items()],
        "each": each,
        "checked": exceeded | {"steps_seen": seen},
        "lost": lost,
        "training": training,
        "results": results,
    }
