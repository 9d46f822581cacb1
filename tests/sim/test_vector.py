"""Rows in worker processes: equal to rows in this one, and what happens when a worker fails."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from sim.serial import merge_specs
from sim.vector import make
from vla_rl.errors import UserError
from vla_rl.keys import ENV_STATE, STATE

ADAPTER = "sim.metaworld:MetaWorldEnv"
IDS = ["reach-v3", "drawer-open-v3"]
SMALL = {"image_size": 32, "max_episode_steps": 12}


def same(a, b, rows=slice(None)):
    return torch.equal(a[STATE][rows], b[STATE][rows]) and torch.equal(a[ENV_STATE][rows], b[ENV_STATE][rows])


def draws(count, seed=0):
    return torch.rand(count, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def pair():
    serial, processes = make(ADAPTER, IDS, 4, 0, **SMALL), make(ADAPTER, IDS, 4, 2, **SMALL)
    yield serial, processes
    serial.close()
    processes.close()
    processes.close()


def test_rows_play_their_ids_in_turn(pair):
    for env in pair:
        assert env.task_ids() == [*IDS, *IDS]
        assert env.env_spec.id == "reach-v3+drawer-open-v3" and len(env.env_spec.tasks) == 2


def test_processes_equal_serial_step_for_step(pair):
    results = [env.reset(seed=5)[0] for env in pair]
    assert same(*results) and results[0]["task"] == results[1]["task"]
    for step, action in enumerate(draws(30)):
        (a, *flags_a, info_a), (b, *flags_b, info_b) = (env.step(action) for env in pair)
        assert same(a, b)
        assert all(torch.equal(x, y) for x, y in zip(flags_a, flags_b, strict=True))
        assert torch.equal(info_a["success"], info_b["success"]) and set(info_a) == set(info_b) == {"success"}
        done = flags_a[1] | flags_a[2]
        if step == 3:
            done[2] = True  # a partial reset in the middle, of one of a worker's two rows
        if done.any():
            seeds = [100 * step + i for i in range(4)]
            results = [env.reset(seed=seeds, options={"reset_mask": done.numpy()})[0] for env in pair]
            assert same(*results)
    for rows in (None, [3], [2, 0]):
        pictures = [env.look(rows) for env in pair]
        assert all(torch.equal(pictures[0][key], pictures[1][key]) for key in pictures[0])


def test_a_step_in_two_halves_equals_a_step(pair):
    for env in pair:
        env.reset(seed=2)
    action = draws(1)[0]
    for env in pair:
        env.step_async(action)
    with pytest.raises(RuntimeError, match="look between step_async and step_wait"):
        pair[1].look()
    halves = pair[1].step_wait()
    whole = pair[0].step_wait()
    assert same(whole[0], halves[0]) and torch.equal(whole[1], halves[1])
    with pytest.raises(RuntimeError, match="step_wait without step_async"):
        pair[1].step_wait()
    pair[1].step_async(action)
    assert same(pair[0].reset(seed=3)[0], pair[1].reset(seed=3)[0])  # a reset forgets the unfinished step


def test_a_killed_worker_is_reported_and_its_rows_come_back(pair, caplog):
    serial, processes = pair
    before = processes.reset(seed=1)[0]
    serial.reset(seed=1)
    seen = processes.look()
    os.kill(processes.workers[1].process.pid, signal.SIGKILL)
    action = draws(1)[0]
    expected = serial.step(action)
    after, reward, terminated, truncated, info = processes.step(action)
    assert same(after, expected[0], slice(0, 2)), "the other worker's rows are not disturbed"
    assert same(after, before, slice(2, 4)), "the last observation is the final one"
    assert info["worker_restarted"].tolist() == truncated.tolist() == [False, False, True, True]
    assert not terminated.any() and not reward[2:].any() and not info["success"].any()
    assert sum("restarted" in record.message for record in caplog.records) == 1
    pictures = processes.look([2, 3])
    assert all(torch.equal(value, seen[key][2:]) for key, value in pictures.items()), "the last picture"
    with pytest.raises(RuntimeError, match=r"rows \[2, 3\] have finished"):
        processes.step(action)
    mask = truncated.numpy()
    seeds = [1, 2, 3, 4]
    again, _ = processes.reset(seed=seeds, options={"reset_mask": mask})
    expected, _ = serial.reset(seed=seeds, options={"reset_mask": mask})
    assert same(again, expected)
    assert "worker_restarted" not in processes.step(action)[4]


def test_a_worker_killed_while_idle_does_not_spoil_a_reset(pair):
    serial, processes = pair
    processes.reset(seed=1)
    os.kill(processes.workers[0].process.pid, signal.SIGKILL)
    assert same(processes.reset(seed=9)[0], serial.reset(seed=9)[0])
    assert same(processes.step(draws(1)[0])[0], serial.step(draws(1)[0])[0])


def test_a_row_lost_in_a_partial_reset_is_reported_at_the_next_step(pair):
    processes = pair[1]
    processes.reset(seed=1)
    os.kill(processes.workers[0].process.pid, signal.SIGKILL)
    processes.reset(seed=9, options={"reset_mask": [True, False, False, False]})
    info = processes.step(draws(1)[0])[4]
    assert info["worker_restarted"].tolist() == [False, True, False, False]


def fault(kind, **settings):
    return make("faulty:FaultyEnv", "reach-v3", 1, 1, fault=kind, **SMALL, **settings)


def test_a_hanging_worker_is_replaced():
    env = fault("hang", timeout_s=1)
    env.reset(seed=0)
    start = time.monotonic()
    *_, truncated, info = env.step(torch.tensor([[0.0, 0, 0, 1]]))
    assert truncated.all() and info["worker_restarted"].all() and time.monotonic() - start < 120
    env.reset(seed=0)
    assert not env.step(torch.zeros(1, 4))[3].any()
    env.close()


def test_too_many_crashes_raise():
    env = fault("crash", max_restarts=1)
    env.reset(seed=0)
    assert env.step(torch.tensor([[0.0, 0, 0, 1]]))[4]["worker_restarted"].all()
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match="failed 2 times; the last one died with exit code -11"):
        env.step(torch.tensor([[0.0, 0, 0, 1]]))
    env.close()


def test_an_error_in_a_worker_is_raised_here_with_its_words():
    env = fault("raise")
    first, _ = env.reset(seed=0)
    with pytest.raises(UserError, match="the gripper must not be shut"):
        env.step(torch.tensor([[0.0, 0, 0, 1]]))
    assert same(env.reset(seed=0)[0], first), "and the worker still answers"
    env.close()
    with pytest.raises(RuntimeError, match="is closed"):
        env.reset()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"adapter": "sim.nowhere:Env"}, "env.adapter=sim.nowhere:Env"),
        ({"adapter": "sim.metaworld"}, "module:Class"),
        ({"ids": []}, "env.ids is empty"),
        ({"num_envs": 0}, "env.num_envs=0"),
        ({"num_workers": -1}, "env.num_workers=-1"),
        ({"ids": "reach-v2"}, "did you mean reach-v3"),
        ({"cameras": ["front"]}, "env.cameras has front, but the scene's cameras are topview, corner"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(UserError, match=words):
        make(**({"adapter": ADAPTER, "ids": "reach-v3", "num_envs": 1, "num_workers": 0} | settings))


def test_an_unknown_id_is_named_from_a_worker_too():
    with pytest.raises(UserError, match="did you mean reach-v3"):
        make(ADAPTER, "reach-v2", 1, 1)


def test_tasks_of_different_shapes_are_refused(pair):
    spec = pair[0].env_spec
    with pytest.raises(UserError, match="mixes .* whose env_state_dim differ"):
        merge_specs([spec, dataclasses.replace(spec, id="other", env_state_dim=7)])


def test_look_at_a_row_that_is_not_there(pair):
    with pytest.raises(IndexError):
        pair[1].look([4])


SCRIPT = """
import sys, time
from sim.vector import make
if __name__ == "__main__":
    env = make("sim.metaworld:MetaWorldEnv", "reach-v3", 1, 1)
    env.reset(seed=0)
    print(env.workers[0].process.pid, env.block.name, flush=True)
    time.sleep(300)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_orphans_when_the_parent_goes(how, tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}, start_new_session=True,
        # A suite started in a shell's background inherits an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert parent.stdout is not None
    pid, memory = parent.stdout.readline().split()
    os.killpg(parent.pid, how) if how == signal.SIGINT else parent.kill()
    parent.wait(20)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        gone = not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
        if gone and not os.path.exists(f"/dev/shm/{memory}"):
            return
        time.sleep(0.1)
    raise AssertionError("the worker or its shared memory outlives its parent")


def test_a_chosen_task_is_played_until_the_next_reset(pair):
    """As in an environment of that task alone; the simulator of the row's own waits, and is as it was."""
    alone = make(ADAPTER, "drawer-open-v3", 1, 0, **SMALL)
    expected, _ = alone.reset(seed=7)
    actions = draws(4)
    wanted = [alone.step(action[:1])[0] for action in actions]
    own = [env.reset(seed=3)[0] for env in pair]
    for env, before in zip(pair, own, strict=True):
        seen, _ = env.reset(seed=7, options={"task": {0: "drawer-open-v3"}})
        assert env.task_ids() == ["drawer-open-v3", *IDS[1:], *IDS] and env.own_task_ids() == [*IDS, *IDS]
        assert seen["task"][0] == expected["task"][0] and torch.equal(
            seen[ENV_STATE][0], expected[ENV_STATE][0]
        )
        for action, after in zip(actions, wanted, strict=True):
            assert torch.equal(env.step(action)[0][ENV_STATE][0], after[ENV_STATE][0])
        again, _ = env.reset(seed=3)
        assert env.task_ids() == [*IDS, *IDS] and same(again, before) and again["task"] == before["task"]
        with pytest.raises(UserError, match="no task drawer-opn-v3 .*drawer-open-v3"):
            env.reset(seed=7, options={"task": {0: "drawer-opn-v3"}})
    alone.close()


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="no fork server there")
def test_workers_share_their_imports_and_have_the_environment_of_today(monkeypatch):
    for word in ("open", "close"):
        monkeypatch.setenv("VLA_RL_WORD", word)
        env = make("faulty:NamedEnv", "drawer-open-v3", 2, 2, cameras=[])
        parents = {psutil.Process(worker.process.pid).ppid() for worker in env.workers}
        assert env.env_spec.tasks == (word,)
        assert len(parents) == 1 and parents != {os.getpid()}, "forked off one process"
        env.close()
