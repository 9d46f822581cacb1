"""Conformance suites: whatever passes them works with every policy, algorithm and command."""

from vla_rl.checks.env import check_env
from vla_rl.checks.policy import check_policy

__all__ = ["check_env", "check_policy"]
