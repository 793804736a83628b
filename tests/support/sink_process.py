"""A collector's half of a sink, to be killed at any moment: appends block after block, and tells what is committed.

And what tests of sinks append, and look at.
"""

import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from fieldlm.formats import block
from fieldlm.formats.block import Block
from fieldlm.formats.record import Record
from fieldlm_compiler.collect.open import open_sink
from fieldlm_compiler.collect.sink import Sink

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


def blocks(*parts: Sequence[Record]) -> list[Block]:
    return [block.parse(block.encode(part)) for part in parts]


def seqs(sink: Sink) -> list[int]:
    return [row["seq"] for row in sink.query("SELECT seq FROM records ORDER BY seq")]


def forget(session: str, *, device: str = "kiosk-1", seq: int = 1) -> list[Record]:
    return [Record(device=device, epoch=7, stream="fb", seq=seq, kind="forget", session=session)]


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
