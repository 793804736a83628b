"""Kinds of engines: what a device has to know of each, without its library; `engine_kind` finds them by name."""
