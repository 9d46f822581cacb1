"""The loop of one side: told how many items on its standard input, it does them and answers with the seconds."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


def serve(make: Callable[[dict[str, Any]], Callable[[int], Any]]) -> None:
    """Build the work from the settings (JSON, the first argument), say so, then obey until the input ends.

    Args:
        make: settings -> a function that does so many items. A number it returns counts instead of its wall time.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to the log
    work = make(json.loads(sys.argv[1]))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        begun = time.perf_counter()
        said = work(int(line))
        taken = time.perf_counter() - begun
        print(said if isinstance(said, float) else taken, file=answers, flush=True)
    os._exit(0)  # simulators and renderers may crash at interpreter exit
