"""Conformance suites: whatever passes them works with every policy, algorithm and command."""

from vla_rl.checks.env import check_env

__all__ = ["check_env"]
