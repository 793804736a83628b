"""The contract between the halves: every file and message that crosses from one process to another.

`profile` (a kind of device), `bundle` (what the compiler hands to the device), `release` (what an update offers),
`record` and `block` (one exchange as it travels home), `topics` (the MQTT wire), `gguf` (the header of a model file).
Nothing here opens a socket or starts a thread.
"""
