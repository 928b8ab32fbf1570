"""The runtime of a voice agent: audio, turns, budget, conversations and the doors they come in by. No model library."""
