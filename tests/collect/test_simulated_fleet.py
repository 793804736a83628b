"""The simulator of a fleet speaks the protocol, and the collector counts every record of it."""

from fieldlm.formats import block
from tests.support import simulated_fleet


def test_the_simulators_blocks_are_blocks() -> None:
    made = block.parse(simulated_fleet.Blocks(40).make("device-1", 12_345))
    records = made.records()
    assert [record.seq for record in records] == list(range(12_345, 12_385))
    assert all(record.outcome and record.duration_ms > record.ttft_ms > 0 for record in records)


def test_thirty_devices_over_real_sockets_and_a_million_in_virtual_time_lose_nothing() -> None:
    real = simulated_fleet.real(30, 1000, 3.0, 20)
    assert (real.lost, real.doubled, real.waiting, real.stored) == (0, 0, 0, real.made)
    assert real.made > 500
    virtual = simulated_fleet.virtual(1_000_000, 0.05, 128)
    assert (virtual.lost, virtual.doubled, virtual.stored) == (0, 0, virtual.made)
    assert virtual.made > 10_000
