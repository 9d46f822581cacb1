"""Benchmarks behind ``vla-rl bench``."""
