"""Import what a policy needs while something else is waited for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def importing_ahead(config: Any) -> Iterator[None]:
    """While simulators start in their processes, import LeRobot and the class of ``config.policy``; both are there at the end.

    Nothing where the environments run in this process: two threads that import much at once meet in half-made modules. What
    is wrong with the policy is told by whoever loads it.
    """
    policy, workers = config.get("policy") or {}, config.env.get("num_workers", 0)
    with ThreadPoolExecutor(1) as pool:
        if policy.get("path") and not policy.get("address") and workers != 0:
            pool.submit(_imports, str(policy.path))
        yield


def _imports(path: str) -> None:
    from vla_rl.config import resolve_path
    from vla_rl.policies.lerobot_folder import read_config

    folder = Path(resolve_path(path))
    if folder.is_dir():  # a run folder has no type of its own; a hub id is not fetched from here
        from lerobot.policies.factory import get_policy_class

        get_policy_class(read_config(folder).type)
