"""The report of a run: ``report.html`` (self-contained) and ``report.json`` (for scripts)."""

from vla_rl.report.write import write_report

__all__ = ["write_report"]
