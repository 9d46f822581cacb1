"""vla-rl bench: measurements, each made by one command.

usage: vla-rl bench collector [key=value ...]
       vla-rl bench residual [key=value ...]

  collector   steps per second with the VLA in the loop, cameras rendered only when it looks, against the stock
              simulator rendering every step; and what the collector itself costs
  residual    base, residual RL, RLPD and filtered BC on many tasks at equal environment steps: fills
              benchmarks/results/residual/README.md; finished runs are kept, so it can be stopped and continued

Examples:
  vla-rl bench collector
  vla-rl bench residual tasks=[lift,reach] seeds=[0]
"""

from __future__ import annotations

import importlib

BENCHES = ("collector", "residual")


def run(overrides: list[str]) -> int:
    """Start the benchmark that the first word names."""
    from vla_rl.config import nearest
    from vla_rl.errors import UserError

    if not overrides or overrides[0] not in BENCHES:
        name = overrides[0] if overrides else ""
        raise UserError(f"unknown benchmark '{name}': {nearest(name, BENCHES)}")
    return importlib.import_module(f"vla_rl.bench.{overrides[0]}").run(overrides[1:])
