"""Rounds of the circle: what came home becomes the next generation, or the one before stays."""
