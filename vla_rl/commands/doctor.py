"""vla-rl doctor: what this machine can run, and the fix for what it cannot.

usage: vla-rl doctor [json=FILE]

Exit code 0 when training works here, 1 when something needed for it is missing.

Examples:
  vla-rl doctor
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path


def run(overrides: list[str]) -> int:
    """Look, print, and write ``json`` when asked."""
    from vla_rl import doctor
    from vla_rl.errors import UserError

    target = None
    for override in overrides:
        key, _, value = override.partition("=")
        if key != "json" or not value:
            raise UserError(f"'{override}': vla-rl doctor takes json=FILE only")
        target = Path(value)
    found = doctor.rows()
    doctor.show(found)
    if target is not None:
        from vla_rl.runtime.metrics import write_json

        write_json(target, {"rows": [asdict(row) for row in found]})
    return int(any(row.needed and not row.ok for row in found))
