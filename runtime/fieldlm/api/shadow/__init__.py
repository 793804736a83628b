"""Live requests that are asked again, of a generation that nobody is answered by yet."""
