"""Checkpoint in, bundle out.

The stages, in order: toolchain, checkpoint, merge, exporters, verify, quantize, verify again, pack. `build` runs them,
`stages` keeps what each made, `child` gives each native step a process of its own.
"""
