import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version

import numpy as np
import torch

import vla_rl
from vla_rl.runtime.versions import MemoryWatch, machine, versions


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


def test_peak_memory_is_of_this_process_and_its_children_and_stays():
    code = "import time; block = bytearray(b'1') * (200 << 20); print('ready', flush=True); time.sleep(60)"
    with MemoryWatch(period=0.02) as watch:
        before = watch.peak_mb()
        assert before > 20
        mine = np.ones(100 << 17)  # 100 MiB
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        deadline = time.monotonic() + 10
        while watch.peak_mb() - before < 290 and time.monotonic() < deadline:
            time.sleep(0.02)
        child.kill()
        child.wait()
        child.stdout.close()
        del mine
    assert 290 < watch.peak_mb() - before < 400
