"""Wiring: which voice detector, recogniser, drafter and voice work together, and the command `voiceagent`."""
