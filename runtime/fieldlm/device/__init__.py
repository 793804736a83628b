"""One running device: `serve` starts it, `device` wires all its parts, `listeners` says where and for whom."""
