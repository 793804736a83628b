"""A collector's half of a sink, to be killed at any moment: appends block after block, and tells what is committed."""

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

from fieldlm.formats import block
from fieldlm.formats.record import Record
from fieldlm_compiler.collect.open import open_sink

KEY = ("kiosk-1", 7, "gen")
BLOCK_RECORDS = 10
forkserver = multiprocessing.get_context("forkserver")
"""Whoever has imported everything forks in a moment, before any library has a thread."""
forkserver.set_forkserver_preload(
    [__name__, *(f"fieldlm_compiler.collect.{name}" for name in ("parquet", "delta", "kafka"))]
)


def made(first: int, last: int, **fields: Any) -> list[Record]:
    device, epoch, _ = KEY
    return [
        Record(device=device, epoch=epoch, stream="gen", seq=seq, kind="generation", **fields)
        for seq in range(first, last + 1)
    ]


def append_for_ever(where: str, pipe: Connection) -> None:
    """Send the watermark after each commit. Every block is sent twice, as a broker may."""
    with open_sink(where) as sink:
        first = sink.watermarks().get(KEY, 0) + 1
        while True:
            parsed = block.parse(block.encode(made(first, first + BLOCK_RECORDS - 1)))
            sink.append([parsed])
            pipe.send(sink.append([parsed])[KEY])
            first += BLOCK_RECORDS
            sink.compact() if first % 40 == 1 else sink.tidy()
