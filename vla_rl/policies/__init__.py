"""Policies: the contract, LeRobot bases, and the wrappers that compose them."""
