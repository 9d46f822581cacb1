"""Replay and LeRobot datasets."""
