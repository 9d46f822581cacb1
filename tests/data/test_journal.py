"""Whatever happens to the file or its writer, every step before that is read back."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_rl.data.journal import Journal, recover
from vla_rl.errors import UserError


def step(i):
    image = np.full((3, 4, 4), i % 256, np.uint8)
    return {
        "observation.state": np.arange(3, dtype=np.float32) + i,
        "image": image,
        "done": np.array([i == 9]),
    }


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("journal") / "steps"
    journal, ends = Journal(path, every=0), []
    for i in range(10):
        journal.append(step(i))
        ends.append(path.stat().st_size)
    journal.close()
    return path.read_bytes(), ends


def test_steps_are_read_back_as_they_were(tmp_path, whole):
    (tmp_path / "steps").write_bytes(whole[0])
    found = recover(tmp_path / "steps")
    assert len(found) == 10 and all(same(step(i), found[i]) for i in range(10))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_cut_or_a_flipped_byte_costs_nothing_before_it(tmp_path_factory, whole, data):
    content, ends = whole
    at = data.draw(st.integers(0, len(content) - 1))
    path = tmp_path_factory.mktemp("cut") / "steps"
    intact = sum(end <= at for end in ends)
    path.write_bytes(content[:at])
    assert len(recover(path)) == intact
    path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
    found = recover(path)
    assert len(found) == intact and all(same(step(i), found[i]) for i in range(intact))


def test_a_killed_writer_loses_no_step_it_has_reported(tmp_path):
    code = (
        "import sys; from pathlib import Path; import numpy as np; from vla_rl.data.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]), every=100.0)\n"
        "for i in range(10**9):\n"
        "    journal.append({'i': np.array([i])}); print(i, flush=True)\n"
    )
    path = tmp_path / "steps"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    for _ in range(50):
        last = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    rest = process.stdout.read().split()
    process.wait()
    last = int(rest[-1]) if rest else last
    found = [int(s["i"][0]) for s in recover(path)]
    assert found == list(range(len(found))) and len(found) >= last


def test_what_is_left_over_is_never_overwritten(tmp_path):
    path = tmp_path / "steps"
    journal = Journal(path)
    journal.append(step(0))
    with pytest.raises(UserError, match="recover it"):
        Journal(path)
    journal.close()
    assert len(recover(path)) == 1
    journal.close(delete=True)
    assert not path.exists() and recover(path) == []


def test_a_full_disk_is_named_and_leaves_whole_steps(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path; import numpy as np\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from vla_rl.data.journal import Journal; from vla_rl.errors import UserError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "try:\n"
        "    while True: journal.append({'x': np.zeros(500)})\n"
        "except UserError as error: print(journal.steps, error)\n"
    )
    path = tmp_path / "steps"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    steps, words = done.stdout.split(" ", 1)
    assert "no space left" in words and len(recover(path)) == int(steps) > 0
