"""Sides of a measurement: programs that do the same work, ours and others', each in a process of its own.

What is in here is also run by interpreters of other environments and imports nothing of vla_rl but ``serve``.
"""
