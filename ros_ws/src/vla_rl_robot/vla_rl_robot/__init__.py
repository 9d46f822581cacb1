"""Lifecycle nodes around ``real/``: the safety node, and a policy that a teleoperator may take over."""
