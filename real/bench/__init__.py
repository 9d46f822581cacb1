"""Benchmarks on a robot, behind ``vla-rl bench control | faults | sim_arm``."""
