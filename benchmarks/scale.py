"""A fleet on paper: connections, messages, bytes and cost by size, out of what was measured. docs/scale.md holds it.

    python -m benchmarks.scale            print the tables
    python -m benchmarks.scale --write    put them into docs/scale.md

A test holds the page against this script. `MEASURED` says which command each number came from; `PUBLISHED` are others'
figures with their source; `PRICES` are assumptions, here to be changed.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from fieldlm.core.logs import logger, to_terminal

log = logger(__name__)

PAGE = Path(__file__).resolve().parents[1] / "docs/scale.md"
BEGIN, END = "<!-- scale -->", "<!-- /scale -->"
DAY_S = 86_400
MONTH_DAYS = 30
EVENTS_A_DAY = 500
KEPT_DAYS = 90
HEADROOM = 0.5
"""Of what a part can do, so much is planned with: the rest is for the hour after an outage."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Two cores of an x86-64 machine that others used at the same time; so the times are rather too long."""

    block_bytes: dict[int, float]
    """Bytes of a record by records in a block: `block.encode` over the records of benchmarks/spool.py."""
    publish_bytes: int
    """MQTT's own bytes around a block: topic, properties, fixed header."""
    ack_bytes: int
    """An acknowledgement with its topic."""
    collector_us: float
    """Collector time a record: benchmarks/fleet.py --seconds 30, blocks of 40."""
    collector_mb: float
    """Its memory in the same run."""
    stored_bytes: float
    """Bytes of a record in Parquet."""


MEASURED = Measured(
    block_bytes={1: 251.1, 4: 80.7, 16: 30.8, 128: 16.1},
    publish_bytes=100,
    ack_bytes=114,
    collector_us=25.1,
    collector_mb=186.0,
    stored_bytes=30.7,
)
JSON_BYTES = 353
"""The same record as OpenTelemetry's JSON (ten attributes)."""
PUBLISHED = {
    "EMQX": (100_000, "EMQX 5.1's own benchmark: 100,000 clients and 100,000 messages/s into Kafka on 32 cores"),
    "EMQX cores": (32, "the same"),
    "connects": (5_000, "the lower of the connect rates EMQX tested, 5,000 to 20,000/s"),
}
PRICES = {"core": 25.0, "GB": 0.023, "GB in": 0.01}
"""Dollars a month for a core and for a GB kept, and for a GB that comes in through a load balancer."""


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """A size of fleet, and who carries it."""

    devices: int
    ingest: str
    buffer: str
    store: str
    curate: str
    broker_cores: int


TIERS = (
    Tier(devices=1_000, ingest="Mosquitto", buffer="–", store="Parquet", curate="one machine", broker_cores=1),
    Tier(devices=10_000, ingest="Mosquitto", buffer="–", store="Parquet", curate="one machine", broker_cores=1),
    Tier(devices=100_000, ingest="EMQX", buffer="–", store="Delta Lake", curate="one machine", broker_cores=32),
    Tier(
        devices=1_000_000,
        ingest="EMQX",
        buffer="Kafka or Redpanda",
        store="Delta Lake",
        curate="not yet",
        broker_cores=320,
    ),
)


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What a tier has to carry."""

    records_per_s: float
    messages_per_s: float
    wire_gb_day: float
    json_gb_day: float
    stored_gb: float
    collector_cores: float
    dollars: float


def load(tier: Tier, block: int) -> Load:
    """Return the load of a tier whose devices put `block` records into a message."""
    records_day = tier.devices * EVENTS_A_DAY
    messages_day = records_day / block
    wire = records_day * MEASURED.block_bytes[block] + messages_day * (MEASURED.publish_bytes + MEASURED.ack_bytes)
    stored_gb = records_day * KEPT_DAYS * MEASURED.stored_bytes / 1e9
    cores = records_day / DAY_S * MEASURED.collector_us / 1e6 / HEADROOM
    dollars = (
        (tier.broker_cores + max(1.0, cores)) * PRICES["core"]
        + stored_gb * PRICES["GB"]
        + wire * MONTH_DAYS / 1e9 * PRICES["GB in"]
    )
    return Load(
        records_per_s=records_day / DAY_S,
        messages_per_s=messages_day / DAY_S,
        wire_gb_day=wire / 1e9,
        json_gb_day=records_day * JSON_BYTES / 1e9,
        stored_gb=stored_gb,
        collector_cores=cores,
        dollars=dollars,
    )


def tables() -> str:
    """Return the tables as Markdown."""
    loads = [(tier, load(tier, 16), load(tier, 1)) for tier in TIERS]
    carried = _markdown(
        ("devices", "ingest", "buffer", "store", "curate, cluster, tune"),
        [(f"{t.devices:,}", t.ingest, t.buffer, t.store, t.curate) for t, *_ in loads],
    )
    figures = _markdown(
        ("devices", "records/s", "messages/s, 16 a block", "alone", "GB/day on the wire, 16 a block", "alone",
         "as JSON", f"GB kept, {KEPT_DAYS} days", "collector cores", "dollars a month"),
        [
            (f"{t.devices:,}", f"{b.records_per_s:,.0f}", f"{b.messages_per_s:,.1f}", f"{a.messages_per_s:,.0f}",
             f"{b.wire_gb_day:,.2f}", f"{a.wire_gb_day:,.2f}", f"{b.json_gb_day:,.1f}", f"{b.stored_gb:,.0f}",
             f"{b.collector_cores:.2f}", f"{b.dollars:,.0f}")
            for t, b, a in loads
        ],
    )  # fmt: skip
    bytes_each = _markdown(
        ("records in a block", "bytes a record", "with MQTT and acknowledgement"),
        [
            (str(n), f"{size:.1f}", f"{size + (MEASURED.publish_bytes + MEASURED.ack_bytes) / n:.1f}")
            for n, size in MEASURED.block_bytes.items()
        ],
    )
    one_core = 1e6 / MEASURED.collector_us
    devices = one_core * HEADROOM * DAY_S / EVENTS_A_DAY
    million = TIERS[-1].devices
    return (
        f"Who carries it:\n\n{carried}\n"
        f"What there is to carry, at {EVENTS_A_DAY} records a device and day:\n\n{figures}\n"
        f"What a record costs on the wire:\n\n{bytes_each}\n"
        f"One collector takes in {one_core:,.0f} records a second on one core with {MEASURED.collector_mb:.0f} MB: "
        f"{devices / 1e6:.1f} million devices at half its load. What a million devices need is connections: "
        f"{million / PUBLISHED['EMQX'][0]:.0f} times what EMQX shows on {PUBLISHED['EMQX cores'][0]} cores, and "
        f"{million / PUBLISHED['connects'][0]:.0f} s for all of them to come back at "
        f"{PUBLISHED['connects'][0]:,} connects a second.\n"
    )


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(argv: Sequence[str]) -> int:
    to_terminal()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    args = parser.parse_args(argv)
    if args.write:
        page = PAGE.read_text()
        block = f"{BEGIN}\n{tables()}{END}"
        PAGE.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: block, page, flags=re.DOTALL))
        log.info(f"{PAGE} is written")
        return 0
    sys.stdout.write(tables())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
