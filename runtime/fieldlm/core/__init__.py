"""What every room stands on: errors, whole files, signing keys, settings, timing, what a terminal is told."""
