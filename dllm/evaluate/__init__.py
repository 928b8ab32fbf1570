"""Measuring a checkpoint: held-back likelihood, and quality by number of steps."""
