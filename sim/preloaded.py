"""What the process that workers are forked from imports once, in place of each of them.

Imported there only (``multiprocessing``'s fork server), with the adapter's module in ``VLA_RL_PRELOAD``; what else may be
imported before a fork that module says in ``preload()``. MuJoCo may not: with EGL it opens the display at import. What
cannot be imported is told by the worker that needs it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os

from sim.worker import PRELOAD

with contextlib.suppress(Exception):
    module = importlib.import_module(os.environ[PRELOAD])
    getattr(module, "preload", lambda: None)()
gc.freeze()  # a collection in a worker would else write to, and so copy, the pages that all share
