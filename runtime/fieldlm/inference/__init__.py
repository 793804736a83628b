"""A model as a program uses it: chat template, generations, adapters, probes, prompt snapshots, the watchdog.

`Model` and `AsyncModel` are what an application opens; `generations` is what a server switches between.
"""
