"""Forgotten means gone: a search of every file of a store finds nothing."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from fieldlm_compiler.collect import delta
from fieldlm_compiler.collect.collect import Collector
from fieldlm_compiler.collect.delta import DeltaStore
from fieldlm_compiler.collect.parquet import Store
from fieldlm_compiler.collect.sink import Policy, Sink
from tests.support.sink_process import blocks, forget, made, seqs
from tests.support.waiting import wait_until

MAGIC = b"\x28\xb5\x2f\xfd"
SECRET = "my sister's flat in Leith"


@pytest.mark.parametrize("policy", ["text", "rows"])
@pytest.mark.parametrize("kind", ["parquet", "delta"])
def test_no_file_holds_what_was_forgotten(kind: str, policy: Policy, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    sink: Sink = (
        Store(folder, forget=policy, erase_every_s=0)
        if kind == "parquet"
        else DeltaStore(str(folder), forget=policy, erase_after_h=0)
    )
    with sink:
        for first in (1, 11):
            sink.append(blocks(made(first, first + 9, session="s1", answer=SECRET, generation="g")))
            sink.tidy(finish=True)
        sink.append(blocks(made(21, 25, session="s1", answer=SECRET, generation="g")))
        assert holds(folder, SECRET.encode())
        sink.append(blocks(forget("s1")))
        sink.tidy()
        assert not holds(folder, SECRET.encode())
        assert (len(seqs(sink)), sink.gaps()) == (26, [])
        left = {r["generation"] for r in sink.query("SELECT generation FROM records WHERE stream = 'gen'")}
        assert left == ({"g"} if policy == "text" else {""})
    assert not holds(folder, SECRET.encode())


def test_what_readers_keep_in_the_log_counts_as_erased_only_once_it_is_gone(tmp_path: Path) -> None:
    with Store(tmp_path, erase_every_s=0) as store:
        store.append(blocks(made(1, 9, session="s1", answer=SECRET)))
        with contextlib.closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM blocks").fetchone()
            store.append(blocks(forget("s1")))
            store.tidy()
        store.tidy()
        assert not holds(tmp_path, SECRET.encode())


def test_a_delta_store_that_stays_open_deletes_the_old_files_when_their_time_has_come(tmp_path: Path) -> None:
    with DeltaStore(str(tmp_path)) as sink:
        sink.append(blocks(made(1, 9, session="s1", answer=SECRET)))
        sink.append(blocks(forget("s1")))
        sink.tidy(finish=True)
        assert holds(tmp_path, SECRET.encode())
        sink.erase_after_h = 0  # the hour is over
        sink.tidy(finish=True)
        assert not holds(tmp_path, SECRET.encode())


NOBODY = "mqtt://127.0.0.1:9"
"""No broker: nothing comes in while the collector runs."""


def is_gone(folder: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):  # files that are replaced while they are looked into
        return not holds(folder, SECRET.encode())
    return False


@pytest.mark.parametrize("kind", ["parquet", "delta"])
def test_a_collector_to_whom_nothing_comes_erases_what_is_due(kind: str, tmp_path: Path) -> None:
    sink = Store(tmp_path, erase_every_s=0.5) if kind == "parquet" else DeltaStore(str(tmp_path), erase_after_h=0)
    with sink:
        for first, session in ((1, "s1"), (11, "s2")):
            sink.append(blocks(made(first, first + 9, session=session, answer=SECRET)))
        sink.tidy(finish=True)
        sink.append(blocks(forget("s1")))
        sink.tidy()
        sink.append(blocks(forget("s2", seq=2)))
        with Collector(NOBODY, "shop", sink):
            wait_until(lambda: is_gone(tmp_path))


def test_a_collector_to_whom_nothing_comes_tries_again_once_a_reader_has_gone(tmp_path: Path) -> None:
    with Store(tmp_path, erase_every_s=0) as store:
        store.append(blocks(made(1, 9, session="s1", answer=SECRET)))
        with contextlib.closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM blocks").fetchone()
            store.append(blocks(forget("s1")))
            store.tidy()
            assert not is_gone(tmp_path), "the reader keeps it in the log"
        with Collector(NOBODY, "shop", store):
            wait_until(lambda: is_gone(tmp_path))


def test_a_collector_to_whom_nothing_comes_deletes_old_files_when_their_time_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta, "VACUUM_EVERY_S", 0.0)
    with DeltaStore(str(tmp_path)) as sink:
        sink.append(blocks(made(1, 9, session="s1", answer=SECRET)))
        sink.append(blocks(forget("s1")))
        sink.tidy(finish=True)
        assert not is_gone(tmp_path)
        sink.erase_after_h = 0  # the hour is over
        with Collector(NOBODY, "shop", sink):
            wait_until(lambda: is_gone(tmp_path))


@pytest.mark.parametrize("damage", ["a newer schema", "cut off"])
@pytest.mark.parametrize("kind", ["parquet", "delta"])
def test_a_block_that_nobody_can_read_loses_what_was_forgotten(kind: str, damage: str, tmp_path: Path) -> None:
    sink = Store(tmp_path, erase_every_s=0) if kind == "parquet" else DeltaStore(str(tmp_path), erase_after_h=0)
    first, late, other = blocks(
        made(1, 3, session="s1", answer=SECRET), made(4, 6, session="s1", answer=SECRET), made(7, 9, session="s2")
    )
    change: dict[str, Any] = {"schema": 99} if damage == "a newer schema" else {"body": first.body[:-4]}
    with sink:
        sink.append([msgspec.structs.replace(first, **change)])
        sink.tidy(finish=True)
        sink.append(blocks(forget("s1")))
        sink.append([msgspec.structs.replace(late, schema=99), msgspec.structs.replace(other, schema=99)])
        sink.tidy(finish=True)
        assert not holds(tmp_path, SECRET.encode())
        assert (sorted(raw.block.last for raw in sink.raw()), sink.gaps()) == ([3, 6, 9], [])
        assert [raw.block.body for raw in sink.raw() if raw.block.last == 9] == [other.body]


def holds(folder: Path, needle: bytes) -> bool:
    """Look into every file, and into Parquet as a reader would."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        if path.suffix == ".parquet":
            columns = [
                c for c in pq.read_table(path).columns if c.type in (pa.string(), pa.large_string(), pa.string_view())
            ]
            if any(needle.decode() in (value or "") for column in columns for value in column.to_pylist()):
                return True
        if needle in path.read_bytes() or any(needle in body for body in bodies(path)):
            return True
    return False


def bodies(path: Path) -> list[bytes]:
    """Return what is packed with zstd in a file, wherever it lies: a block's body holds its texts compressed."""
    data, found = path.read_bytes(), list[bytes]()
    start = data.find(MAGIC)
    while start >= 0:
        with contextlib.suppress(zstd.ZstdError):
            found.append(zstd.ZstdDecompressor().decompress(data[start:]))
        start = data.find(MAGIC, start + 1)
    return found
