"""Whether a caller's words are a whole turn, told by a small model of words alone: it knows no sound, no reply and no other part."""
