"""Simulators behind the environment contract: ManiSkill, robosuite, Meta-World, any gymnasium environment."""
