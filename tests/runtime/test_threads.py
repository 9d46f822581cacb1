import os
import subprocess
import sys

import pytest

from vla_rl.runtime import threads


def test_budget_honours_affinity():
    everything = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(everything)})
        assert threads.cpu_budget() == 1
    finally:
        os.sched_setaffinity(0, everything)
    assert 1 <= threads.cpu_budget() <= len(everything)


@pytest.mark.parametrize(
    "files, cores",
    [
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "350000 100000\n"}, 3),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "nonsense\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({}, 8),
    ],
)
def test_budget_honours_quotas(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads.cpu_budget(tmp_path) == cores


def test_set_threads_in_a_fresh_process():
    code = """
import os, torch
from vla_rl.runtime.threads import set_threads
assert set_threads(1) == 1
assert (torch.get_num_threads(), torch.get_num_interop_threads()) == (1, 1)
assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "1"
assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
torch.zeros(9) + 1
set_threads(1)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_prepare_process_leaves_what_the_user_set(monkeypatch):
    monkeypatch.setattr(os, "environ", {"OMP_NUM_THREADS": "5"})
    threads.prepare_process()
    assert os.environ["OMP_NUM_THREADS"] == "5"
    assert os.environ["MKL_NUM_THREADS"] == str(threads.cpu_budget())
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def test_set_cores_keeps_the_first_ones():
    everything = os.sched_getaffinity(0)
    try:
        threads.set_cores(None)
        assert os.sched_getaffinity(0) == everything
        threads.set_cores(1)
        assert os.sched_getaffinity(0) == {min(everything)}
    finally:
        os.sched_setaffinity(0, everything)
