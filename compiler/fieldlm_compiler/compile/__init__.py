"""Checkpoint in, bundle out: `build` runs the stages in order and packs what passed the gates."""
