"""Training dialogues made by a program: facts read from a system prompt, calls of tools, phone manners."""
