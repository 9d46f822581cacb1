"""Rewards beside the environment's own."""
