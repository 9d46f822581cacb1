"""DSRL on the same bases with the true sparse reward, with a critic as its only reward and end, and with the same critic unguarded."""

from __future__ import annotations

from vla_rl.bench import diffusion


def run(overrides: list[str]) -> int:
    """Run what is missing and write the table after every run."""
    return diffusion.run(overrides, "bench_vlac")
