"""Run folders, checkpoints, logging, seeding, threads."""
