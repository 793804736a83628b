"""What telemetry costs a device: records to the disk, time taken from a request, memory, bytes on the wire.

    taskset -c 0 .venv/bin/python -m benchmarks.spool [--folder DIR] [--records 100000] [--json]

One core when started so; the spool lies in --folder, whose disk has to be a real one: a flush of 128 records is one
transaction with fsync. Beside it, in the same run, SQLite alone does the same transactions with the same rows ready
made, and fsync alone writes as many bytes: the ratio is what our own code costs.
"""

import argparse
import json
import math
import os
import resource
import secrets
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from fieldlm.formats import block, topics
from fieldlm.formats.record import Record, pack
from fieldlm.telemetry.recorder import Recorder
from fieldlm.telemetry.spool import GROUP_RECORDS, Spool
from tests.support.kiosk_records import ID_KEY, morning

WANT = {"records_s": 20_000, "added_p99_ms": 1.0, "agent_mb": 40.0, "bytes_record": 25.0}
FLEET, DEVICE = "default", "kiosk-1"
SEGMENT_BYTES, SEGMENT_HEAD, TLS_HEAD = 1448, 52, 22
"""IPv4 and TCP with timestamps over Ethernet, and a record of TLS 1.3."""
SYSTEM = "You take the orders of a coffee shop and answer with one call of a function. " * 8


def durable(folder: Path, records: list[Record]) -> float:
    """Return records a second, each group of 128 durable before the next begins."""
    with Spool(folder / "spool.db", max_mb=512) as spool:
        began_s = time.perf_counter()
        for start in range(0, len(records), GROUP_RECORDS):
            for record in records[start : start + GROUP_RECORDS]:
                assert spool.append(record)
            assert spool.flush()
        return len(records) / (time.perf_counter() - began_s)


def sqlite_alone(folder: Path, records: list[Record]) -> float:
    rows = [("gen", seq, "kiosk-1", pack(record)) for seq, record in enumerate(records, 1)]
    base = sqlite3.connect(folder / "plain.db", isolation_level=None)
    base.execute("PRAGMA journal_mode = WAL")
    base.execute("PRAGMA synchronous = FULL")
    base.execute(
        "CREATE TABLE r (stream TEXT, seq INTEGER, device TEXT, row BLOB, PRIMARY KEY (stream, seq)) WITHOUT ROWID"
    )
    began_s = time.perf_counter()
    for start in range(0, len(rows), GROUP_RECORDS):
        base.execute("BEGIN IMMEDIATE")
        base.executemany("INSERT INTO r VALUES (?, ?, ?, ?)", rows[start : start + GROUP_RECORDS])
        base.execute("COMMIT")
    took_s = time.perf_counter() - began_s
    base.close()
    return len(rows) / took_s


def fsync_alone(folder: Path, groups: int, size: int) -> float:
    """Return records a second when a group is one write and one fsync."""
    data = os.urandom(size)
    with (folder / "log").open("wb", buffering=0) as file:
        began_s = time.perf_counter()
        for _ in range(groups):
            file.write(data)
            os.fdatasync(file.fileno())
        return groups * GROUP_RECORDS / (time.perf_counter() - began_s)


def added_ms(folder: Path, mode: Any, requests: int, pause_s: float) -> list[float]:
    """Return what one call of the recorder took from each of `requests` requests, while the writer writes."""
    made: list[float] = []
    with Spool(folder / f"{mode}.db") as spool:
        recorder = Recorder(spool, device="kiosk-1", mode=mode, salt=secrets.token_bytes(32), consents=["c-1"])
        for number in range(requests):
            exchange = _exchange(number)
            began_s = time.perf_counter()
            recorder.exchange(exchange)
            made.append(1000 * (time.perf_counter() - began_s))
            time.sleep(pause_s)
        assert spool.flush(60)
    return sorted(made)


def _exchange(number: int) -> Any:
    said = f"I'd like {number % 7} lattes with oat milk for Anna, and call me on 0151 23456789 when they are ready"
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": said}]
    timings = SimpleNamespace(cached_tokens=80, queue_s=0.001, margin=5.1, min_logprob=-0.02)
    return SimpleNamespace(
        id=f"chatcmpl-{number:016x}", generation="0123456789ab", model="SmolLM2", messages=messages,
        outcome="stop",
        answer='{"name":"order","arguments":{"items":[{"item":"latte","quantity":2}]}}', timings=timings,
        used_fallback=False, context={}, confidence=0.93, is_unsure=False, adapter="", answered_by="",
        started_wall_s=time.time(), duration_s=0.4, ttft_s=0.06, session=f"s{number // 3}", consent="c-1",
        route="local", prompt_tokens=120, completion_tokens=20,
    )  # fmt: skip


def bytes_record(records: list[Record]) -> dict[str, float]:
    """Return bytes a record of a block of 128, with more and more counted, and of OTel's JSON.

    `with_mqtt` adds everything that MQTT moves for a block, both ways: topic, properties, the broker's and the
    collector's acknowledgement. `on_the_wire` adds TLS, TCP and IP with an empty segment back for each that comes.
    """
    blocks: list[bytes] = []
    for start in range(0, len(records) - 127, 128):
        part = [_numbered(record, start + i + 1) for i, record in enumerate(records[start : start + 128])]
        blocks.append(block.encode(part, id_key=ID_KEY))
    body = sum(map(len, blocks)) / len(blocks)
    ack = msgspec.json.encode(topics.Ack(epoch=7_234_567_890_123_456_789, upto={"gen": len(records)}))
    # Fixed header, topic, packet id; properties and their length: expiry 5, content type, user property 7.
    up = 3 + 2 + len(topics.block_topic(FLEET, DEVICE, "gen")) + 2 + 1 + 5 + 3 + len(topics.CONTENT_TYPE) + 7 + body
    down = [4, 2 + 2 + len(topics.ack_topic(FLEET, DEVICE)) + 1 + 5 + len(ack)]
    wire = sum(_on_the_wire(message) for message in (up, *down))
    return {
        "block": round(body / 128, 2),
        "with_mqtt": round((up + sum(down)) / 128, 2),
        "on_the_wire": round(wire / 128, 2),
        "otel_json": round(sum(len(_otel(record)) for record in records[:1000]) / 1000, 1),
    }


def _on_the_wire(message: float) -> float:
    return message + TLS_HEAD + 2 * SEGMENT_HEAD * math.ceil((message + TLS_HEAD) / SEGMENT_BYTES)


def _numbered(record: Record, seq: int) -> Record:
    return msgspec.structs.replace(record, epoch=7_234_567_890_123_456_789, seq=seq)


def _otel(record: Record) -> bytes:
    """One span with ten attributes, as an OTLP exporter writes it, without resource and scope around it."""
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "chat", "gen_ai.request.model": record.model, "gen_ai.response.id": record.response,
        "gen_ai.response.finish_reasons": record.outcome, "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens, "gen_ai.server.time_to_first_token": record.ttft_ms,
        "session.id": record.session, "fieldlm.margin": record.margin, "fieldlm.generation": record.generation,
    }  # fmt: skip
    end_ms = record.wall_ms + int(record.duration_ms)
    span = {"name": "chat", "start": record.wall_ms, "end": end_ms, "attributes": attributes}
    return json.dumps(span, separators=(",", ":")).encode()


AGENT = """
import sys, tempfile, pathlib
def rss():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmRSS")) / 1000
bare = rss()
from benchmarks.spool import _exchange
from fieldlm.telemetry.recorder import Recorder
from fieldlm.telemetry.spool import Spool
from fieldlm.telemetry.sync import Sync
with tempfile.TemporaryDirectory() as folder, Spool(pathlib.Path(folder) / "s.db") as spool:
    recorder = Recorder(spool, device="k", mode="redacted", salt=b"x", consents=["c-1"])
    sync = Sync(spool, broker_url="mqtt://127.0.0.1:9", fleet="f", device="k")
    sync.start()
    for number in range(5000):
        recorder.exchange(_exchange(number))
        if number % 500 == 0:
            spool.flush()
    spool.flush()
    spool.pending("gen", 0, 128)
    print(rss() - bare)
    sync.stop()
"""


def agent_mb() -> float:
    """Return what recorder, redaction, spool and sync keep resident beyond a bare Python, after 5,000 exchanges."""
    done = subprocess.run([sys.executable, "-c", AGENT], capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def median(measure: Callable[[Path], float], folder: Path, times: int) -> float:
    found: list[float] = []
    for _ in range(times):
        with tempfile.TemporaryDirectory(dir=folder) as own:
            found.append(measure(Path(own)))
    return sorted(found)[len(found) // 2]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="where the disk is that is measured")
    parser.add_argument("--records", type=int, default=51_200)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--pause-s", type=float, default=0.005, help="between two requests")
    parser.add_argument("--times", type=int, default=3, help="runs; the median counts")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    records = morning(args.records)
    row = sum(len(pack(record)) for record in records[:1000]) // 1000
    groups = args.records // GROUP_RECORDS
    document: dict[str, Any] = {
        "records_s": round(median(lambda folder: durable(folder, records), args.folder, args.times)),
        "sqlite_alone_s": round(median(lambda folder: sqlite_alone(folder, records), args.folder, args.times)),
        "fsync_alone_s": round(
            median(lambda folder: fsync_alone(folder, groups, row * GROUP_RECORDS), args.folder, args.times)
        ),
    }
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for mode in ("metrics", "redacted"):
            took = added_ms(Path(folder), mode, args.requests, args.pause_s)
            document[f"added_{mode}_ms"] = {
                "p50": round(took[len(took) // 2], 3),
                "p99": round(took[len(took) * 99 // 100], 3),
            }
    document["agent_mb"] = round(agent_mb(), 1)
    document["bytes_record"] = bytes_record(records)
    document["cores"] = len(os.sched_getaffinity(0))
    document["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)
    print(json.dumps(document, indent=None if args.json else 2))
    p99 = max(document["added_metrics_ms"]["p99"], document["added_redacted_ms"]["p99"])
    held = document["records_s"] >= WANT["records_s"] and p99 <= WANT["added_p99_ms"]
    small = document["agent_mb"] <= WANT["agent_mb"] and document["bytes_record"]["on_the_wire"] <= WANT["bytes_record"]
    return 0 if held and small else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
