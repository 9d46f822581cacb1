"""VLAC: one vision-language model that says how far a task has come from pictures and a sentence (arXiv 2509.15937)."""
