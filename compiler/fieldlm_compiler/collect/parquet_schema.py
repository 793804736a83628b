"""SQLite schema of the Parquet store: journal of blocks, watermarks, and which files hold the records."""

from collections.abc import Sequence
from typing import Any

from fieldlm.formats.block import MAGIC, Block
from fieldlm.formats.block import VERSION as BLOCK_VERSION

VERSION = 2
SCHEMA = """
CREATE TABLE IF NOT EXISTS watermarks (device TEXT NOT NULL, epoch INTEGER NOT NULL, stream TEXT NOT NULL,
    upto INTEGER NOT NULL, PRIMARY KEY (device, epoch, stream)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blocks (number INTEGER PRIMARY KEY, device TEXT NOT NULL, epoch INTEGER NOT NULL,
    stream TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, records INTEGER NOT NULL,
    schema INTEGER NOT NULL, after INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, rows INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS raw (device TEXT NOT NULL, epoch INTEGER NOT NULL, stream TEXT NOT NULL,
    first INTEGER NOT NULL, last INTEGER NOT NULL, records INTEGER NOT NULL, schema INTEGER NOT NULL,
    problem TEXT NOT NULL, body BLOB NOT NULL, after INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (device, epoch, stream, first)) STRICT;
CREATE TABLE IF NOT EXISTS presence (device TEXT PRIMARY KEY, state TEXT NOT NULL, at_ms INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS traffic (device TEXT PRIMARY KEY, bytes INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS steps (device TEXT NOT NULL, epoch INTEGER NOT NULL, stream TEXT NOT NULL,
    before INTEGER NOT NULL, PRIMARY KEY (device, epoch, stream)) STRICT;
CREATE TABLE IF NOT EXISTS forgotten (device TEXT NOT NULL, session TEXT NOT NULL, erased INTEGER NOT NULL,
    PRIMARY KEY (device, session)) STRICT, WITHOUT ROWID;
"""


def as_row(block: Block) -> tuple[Any, ...]:
    return (
        block.device, block.epoch, block.stream, block.first, block.last, block.count, block.schema, block.body
    )  # fmt: skip


def as_block(head: Sequence[Any]) -> Block:
    device, epoch, stream, first, last, count, schema, body = head
    return Block(MAGIC, BLOCK_VERSION, schema, device, stream, epoch, first, last, count, body)
