"""Thinking, as requests ask for it: on, off, how much; and the prompt that comes of it."""
