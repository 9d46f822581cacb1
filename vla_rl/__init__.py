"""vla_rl: improve a vision-language-action policy with reinforcement learning."""

__version__ = "0.1.0"
