import json
import platform
import subprocess
import sys
from importlib.metadata import version

import torch

import vla_rl
from vla_rl.runtime.versions import machine, versions


def test_versions_of_what_is_installed():
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["vla_rl"] == vla_rl.__version__
    assert found["torch"] == version("torch") and found["lerobot"] == version("lerobot")
    assert found["mani_skill"] == version("mani_skill")
    assert all(isinstance(v, str) and v for v in found.values())
    json.dumps(found)


def test_the_commit_is_this_repositorys():
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode == 0:
        assert head.stdout.startswith(versions()["commit"])


def test_machine_in_words():
    found = machine()
    assert set(found) == {"processor", "cores", "memory", "system", "graphics"}
    assert found["memory"].endswith("GiB") and "usable of" in found["cores"]
    assert (found["graphics"] == "no CUDA device") == (not torch.cuda.is_available())


_PEAK = """
import subprocess, sys, time
import numpy as np
from vla_rl.runtime.versions import MemoryWatch

code = "import time; block = bytearray(b'1') * (200 << 20); print('ready', flush=True); time.sleep(60)"
with MemoryWatch(period=0.02) as watch:
    before = watch.peak_mb()
    mine = np.ones(100 << 17)  # 100 MiB
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child.stdout.readline()
    deadline = time.monotonic() + 10
    while watch.peak_mb() - before < 290 and time.monotonic() < deadline:
        time.sleep(0.02)
    child.kill()
    child.wait()
    del mine
print(before, watch.peak_mb() - before)
"""


def test_peak_memory_is_of_this_process_and_its_children_and_stays():
    # In a process of its own: this one's memory shrinks and grows with what other tests left.
    done = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True)
    before, more = map(float, done.stdout.split())
    assert before > 20
    assert 200 < more < 400  # of 300: a machine short of memory takes some of it away before it is seen
