"""Over-the-air updates that cannot brick a device (A/B slots, TUF).

`trust` (TUF metadata), `slots` and `journal` (what may start), `rehearsal` and `trial` (before it answers people),
`gates` and `regression_monitor` (whether it does so well), `updater` (the walk through all of them).
"""
