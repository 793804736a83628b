"""The contract between the halves: every file and message that crosses from one process to another.

`errors`, `files` and `keys` carry the rest: `profile` (a kind of device), `bundle` (what the compiler hands to the
device), `release` (what an update offers), `record` (one exchange as it travels home), `topics` (the MQTT wire).
Nothing here imports anything of ours, opens a socket or starts a thread.
"""
