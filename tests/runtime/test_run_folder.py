import errno
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vla_rl.errors import UserError
from vla_rl.policies.load import load_newest
from vla_rl.runtime import checkpoints as store
from vla_rl.runtime.run_folder import RunFolder, check_free_disk, read_metrics, verify_checkpoint

SAVER = Path(__file__).with_name("saver.py")


@pytest.fixture
def run(tmp_path):
    with RunFolder.create(tmp_path, "one", "seed: 3\n") as folder:
        yield folder


def writer(text):
    def write(folder):
        (folder / "part").mkdir()
        (folder / "part" / "data.bin").write_text(text * 1000)
        (folder / "state.json").write_text(json.dumps({"text": text}))

    return write


def text_of(folder):
    return json.loads((folder / "state.json").read_text())["text"]


def reopen(run):
    run.close()
    return RunFolder.open(run.path)


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- the folder ------------------------------------------------------------------------------------------


def test_create_holds_the_configuration_and_never_overwrites(run, tmp_path):
    assert (run.path / "config.yaml").read_text() == "seed: 3\n"
    with pytest.raises(UserError) as error:
        RunFolder.create(tmp_path, "one", "seed: 4\n")
    assert f"resume={run.path}" in one_line(error) and "run.name" in str(error.value)
    assert (run.path / "config.yaml").read_text() == "seed: 3\n"


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/../../b"])
def test_names_that_leave_the_root_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="run.name"):
        RunFolder.create(tmp_path / "runs", name, "")
    assert not (tmp_path / "runs").exists()


def test_create_where_nothing_can_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another run.root"):
        RunFolder.create(tmp_path / "file", "one", "")


def test_open_what_is_no_run(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="config.yaml"):
            RunFolder.open(path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_before_the_start(tmp_path):
    with pytest.raises(UserError, match=r"\d+ MiB are free .* a run needs"):
        RunFolder.create(tmp_path, "one", "", need_mb=1 << 40)
    assert list(tmp_path.iterdir()) == []
    check_free_disk(tmp_path / "not" / "yet" / "there", 1)


def test_one_process_at_a_time(run):
    with pytest.raises(UserError, match="in use by another process"):
        RunFolder.open(run.path)
    code = "import sys; from vla_rl.runtime.run_folder import RunFolder\nRunFolder.open(__import__('pathlib').Path(sys.argv[1]))"
    partial = run.checkpoints / ".tmp-000000007"
    partial.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=False
    )
    assert done.returncode and f"in use by another process (pid {os.getpid()})" in done.stderr
    assert partial.exists(), "what the owner is writing must not be tidied away by someone who has no lock"
    again = reopen(run)
    assert not partial.exists()
    again.close()


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    run = RunFolder.create(tmp_path, "one", "")
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        run.close()
        RunFolder.open(run.path).close()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_log_txt_holds_the_packages_log_until_close(run):
    logging.getLogger("vla_rl.something").warning("a worker died")
    run.close()
    logging.getLogger("vla_rl.something").warning("later")
    RunFolder.open(run.path).close()
    text = (run.path / "log.txt").read_text()
    assert "WARNING vla_rl.something: a worker died" in text and "later" not in text
    assert "begun by process" in text and text.rstrip().endswith("from the start")


# ---- metrics ---------------------------------------------------------------------------------------------


def test_metrics_survive_a_torn_line_and_go_back_to_the_checkpoint(run):
    run.log(100, success=0.5)
    run.save_checkpoint(100, writer("a"))
    run.log(200, success=0.6)
    with open(run.metrics, "a") as file:
        file.write('{"step": 300, "succ')
    assert [r["step"] for r in read_metrics(run.metrics)] == [100, 200]
    again = reopen(run)
    again.log(150, success=0.7)
    again.close()
    assert read_metrics(run.metrics) == [{"step": 100, "success": 0.5}, {"step": 150, "success": 0.7}]


def test_a_run_killed_before_its_first_checkpoint_starts_its_metrics_over(run):
    run.log(100, success=0.5)
    again = reopen(run)
    assert again.latest_checkpoint() is None and read_metrics(run.metrics) == []
    again.close()


def test_metrics_are_valid_json_whatever_is_logged(run):
    run.log(1, loss=float("nan"), q=torch.tensor(2.0), nested={"rate": float("inf"), "ids": (1, 2)})
    row = json.loads(run.metrics.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert row == {"step": 1, "loss": None, "q": 2.0, "nested": {"rate": None, "ids": [1, 2]}}


def test_tensorboard_takes_the_numbers(run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run.also_log_to(tensorboard=True)
    for step in (10, 20):
        run.log(step, q=step / 10, evaluation={"rate": 0.5, "per_task": {"a": {"rate": 1.0}}}, name="text")
    run.close()
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"q", "evaluation/rate", "evaluation/per_task/a/rate"}
    assert [(e.step, e.value) for e in events.Scalars("q")] == [(10, 1.0), (20, 2.0)]


def test_wandb_that_is_not_installed(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="install wandb"):
        run.also_log_to(wandb="project")


# ---- checkpoints -----------------------------------------------------------------------------------------


def test_the_newest_are_kept(run):
    for step in (10, 20, 30):
        folder = run.save_checkpoint(step, writer(str(step)))
        assert text_of(folder) == str(step)
    assert [p.name for p in sorted(run.checkpoints.iterdir())] == ["000000020", "000000030"]
    assert run.latest_checkpoint() == folder == RunFolder.latest_in(run.path)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == store.FORMAT and set(manifest["files"]) == {"part/data.bin", "state.json"}


def test_steps_beyond_nine_digits_are_ordered_by_number(run):
    run.save_checkpoint(999_999_999, writer("small"))
    run.save_checkpoint(1_000_000_000, writer("large"))
    assert text_of(run.latest_checkpoint()) == "large"


def test_the_same_step_again_replaces_it(run):
    run.save_checkpoint(10, writer("first"), keep=1)
    run.save_checkpoint(10, writer("second"), keep=1)
    assert text_of(run.latest_checkpoint()) == "second"
    assert [p.name for p in run.checkpoints.iterdir()] == ["000000010"]


def test_a_replacement_cut_between_its_two_renames_loses_nothing(run):
    folder = run.save_checkpoint(10, writer("first"))
    folder.rename(run.checkpoints / ".old-000000010")
    assert text_of(run.latest_checkpoint()) == "first"
    again = reopen(run)
    assert again.latest_checkpoint() == folder and text_of(folder) == "first"
    again.close()


def test_checkpoints_of_an_abandoned_course_go_when_another_is_saved(run):
    run.save_checkpoint(10, writer("ten"))
    broken = run.save_checkpoint(20, writer("twenty"))
    (broken / "state.json").unlink()
    assert text_of(run.latest_checkpoint()) == "ten"
    run.save_checkpoint(15, writer("fifteen"), keep=1)
    assert text_of(run.latest_checkpoint()) == "fifteen"
    assert [p.name for p in run.checkpoints.iterdir()] == ["000000015"]


def damage(folder, how):
    data = folder / "part" / "data.bin"
    if how == "truncated":
        os.truncate(data, 10)
    elif how == "missing":
        data.unlink()
    elif how == "changed":
        content = bytearray(data.read_bytes())
        content[7] ^= 1
        data.write_bytes(content)
    elif how == "manifest":
        (folder / "manifest.json").write_text("{")
    elif how == "format":
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))


SAID = {
    "truncated": r"data.bin has 10 of \d+ bytes",
    "missing": "data.bin is missing",
    "changed": r"data.bin is damaged",
    "manifest": "not a complete checkpoint",
    "format": "format 99, this version of vla_rl reads 1",
}


@pytest.mark.parametrize("how", SAID)
def test_a_damaged_checkpoint_is_skipped_with_a_warning_and_refused_by_name(run, how, caplog):
    run.save_checkpoint(10, writer("good"))
    bad = run.save_checkpoint(20, writer("bad"))
    damage(bad, how)
    with pytest.raises(UserError, match=SAID[how]) as error:
        verify_checkpoint(bad)
    assert str(bad) in one_line(error)
    assert text_of(run.latest_checkpoint()) == "good"
    assert "trying the one before" in caplog.text


def test_a_run_without_a_usable_checkpoint_is_refused_and_kept(run):
    run.log(10, success=0.5)
    damage(run.save_checkpoint(10, writer("only")), "format")
    run.close()
    with pytest.raises(UserError, match="no checkpoint that can be used.*format 99"):
        RunFolder.open(run.path)
    assert len(read_metrics(run.metrics)) == 1 and (run.checkpoints / "000000010").is_dir()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_keeps_what_is_there(run, error):
    run.save_checkpoint(10, writer("good"), keep=1)

    def full(folder):
        (folder / "half").write_text("half")
        raise error

    with pytest.raises(UserError, match="no space left") as said:
        run.save_checkpoint(20, full, keep=1)
    assert f"resume={run.path}" in one_line(said)
    assert [p.name for p in run.checkpoints.iterdir()] == ["000000010"]
    assert text_of(run.latest_checkpoint()) == "good"


def test_a_full_disk_of_the_real_kind(tmp_path):
    """A file system of 1 MiB that really runs full, written to by Python and by safetensors."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting needs root")
    try:
        run = RunFolder.create(small, "one", "", need_mb=0)
        run.save_checkpoint(10, writer("good"))
        tensors = {"w": torch.zeros(1 << 20)}
        for fill in (
            lambda folder: (folder / "big").write_bytes(b"0" * (4 << 20)),
            lambda folder: save_file(tensors, folder / "big.safetensors"),
        ):
            with pytest.raises(UserError, match="no space left"):
                run.save_checkpoint(20, fill)
            assert [p.name for p in run.checkpoints.iterdir()] == ["000000010"]
            verify_checkpoint(run.latest_checkpoint())
        run.save_checkpoint(30, writer("room again"))
        run.close()
    finally:
        subprocess.run(["umount", str(small)], check=False)


def test_an_error_of_the_writer_is_passed_on_and_leaves_nothing(run):
    def broken(folder):
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.save_checkpoint(10, broken)
    assert list(run.checkpoints.iterdir()) == []


def test_sigkill_at_random_moments_always_leaves_a_loadable_run(tmp_path):
    """25 kills of one run; each time what was last announced as saved, or newer, loads."""
    path, said = tmp_path / "run", 0
    rng = random.Random(0)
    for _ in range(25):
        process = subprocess.Popen(
            [sys.executable, str(SAVER), str(path)], stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert process.stdout is not None
        first = process.stdout.readline().split()
        assert first[0] == "ready", "a killed run must open again"
        assert int(first[1]) >= said
        time.sleep(rng.uniform(0.0, 0.15))
        process.kill()
        lines = process.stdout.read().splitlines(keepends=True)
        process.wait()
        process.stdout.close()
        said = max([said, *(int(text) for text in lines if text.endswith("\n"))])
        newest = RunFolder.latest_in(path)
        if newest is None:
            assert said == 0
            continue
        verify_checkpoint(newest)
        step = json.loads((newest / "state.json").read_text())["step"]
        assert step >= said
        assert (newest / "algorithm" / "2.bin").read_bytes() == bytes([step % 251]) * 60_000
        assert all("success" in row for row in read_metrics(path / "metrics.jsonl"))
    assert said > 200


def test_a_checkpoint_that_goes_while_it_is_read_is_not_the_end(run):
    """Somebody plays a policy that is still being trained."""

    class Reader:
        read: str | None = None

        def load(self, folder, *, replay):
            if int(folder.parent.name) == 1:
                run.save_checkpoint(2, writer("b"), keep=1)
            if not folder.parent.is_dir():
                raise UserError("cannot read checkpoint")
            self.read = text_of(folder.parent)

    first = run.save_checkpoint(1, writer("a"), keep=1)
    reader = Reader()
    load_newest(reader, run.path, first)
    assert reader.read == "b"
    second = run.path / "checkpoints" / "000000002"
    shutil.rmtree(second)
    with pytest.raises(UserError, match="no usable checkpoint any more"):
        load_newest(reader, run.path, second)


def test_a_checkpoint_set_aside_is_a_run_of_its_own(run):
    saved = run.save_checkpoint(1, writer("a"))
    aside = run.set_aside(saved, "exploited")
    assert text_of(RunFolder.latest_in(aside)) == "a" and run.latest_checkpoint() is None
    assert (aside / "config.yaml").read_text() == "seed: 3\n"
