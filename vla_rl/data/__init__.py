"""Replay and LeRobot datasets."""

import os

os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")  # torchrl announces every storage otherwise
