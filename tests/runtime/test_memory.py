"""Freed memory is used again instead of asked for anew."""

import os
import subprocess
import sys

CODE = """
import resource, sys, torch
from vla_rl.runtime.memory import keep_freed_memory
from vla_rl.runtime.threads import set_threads
if sys.argv[1] == "asked":
    print(keep_freed_memory())
    sys.exit()

def work():
    blocks = [torch.ones(1_500_000) for _ in range(4)]
    del blocks

set_threads(1)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

PAGES = 4 * 1_500_000 * 4 // 4096
"""Of the blocks of one round."""


def _run(case: str, **more: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    made = subprocess.run(
        [sys.executable, "-c", CODE, case], env={**clean, **more}, check=True, capture_output=True, text=True
    )
    return made.stdout.strip()


def test_a_process_that_computes_asks_for_its_pages_once():
    assert (
        int(_run("computes")) < 2 * PAGES
    )  # of 20 rounds; what lies at the heap's end decides how many without


def test_what_the_environment_chooses_stays():
    assert _run("asked", MALLOC_TRIM_THRESHOLD_="1000000") == "False"
    assert _run("asked") == "True"
