"""docs/scale.md says what benchmarks/scale.py computes, and the simulator of a fleet counts every record."""

import os

import pytest

from benchmarks import fleet, scale
from fieldlm.formats import block
from tests.support.brokers import MOSQUITTO


def test_the_page_says_what_the_script_computes() -> None:
    page = scale.PAGE.read_text()
    assert f"{scale.BEGIN}\n{scale.tables()}{scale.END}" in page


def test_ten_times_the_devices_are_ten_times_the_load() -> None:
    small, large = (scale.load(tier, 16) for tier in scale.TIERS[:2])
    assert large.records_per_s == 10 * small.records_per_s
    assert large.wire_gb_day == 10 * small.wire_gb_day
    assert scale.load(scale.TIERS[0], 1).wire_gb_day > small.wire_gb_day


def test_the_simulators_blocks_are_blocks() -> None:
    made = block.parse(fleet.Blocks(40).make("device-1", 12_345))
    records = made.records()
    assert [record.seq for record in records] == list(range(12_345, 12_385))
    assert all(record.outcome and record.duration_ms > record.ttft_ms > 0 for record in records)


@pytest.mark.skipif(not MOSQUITTO and os.environ.get("CI") != "true", reason="Mosquitto is not installed")
def test_thirty_devices_over_real_sockets_and_a_million_in_virtual_time_lose_nothing() -> None:
    real = fleet.real(30, 1000, 3.0, 20)
    assert (real.lost, real.doubled, real.waiting, real.stored) == (0, 0, 0, real.made)
    assert real.made > 500
    virtual = fleet.virtual(1_000_000, 0.05, 128)
    assert (virtual.lost, virtual.doubled, virtual.stored) == (0, 0, virtual.made)
    assert virtual.made > 10_000
