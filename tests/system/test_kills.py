"""Kill -9 at random: devices, broker and collector, as often as the depth of this run asks for."""

from pathlib import Path

from tests.support import depth, telemetry_kills

KILLS = depth.scaled(50, most=10_000)


def test_random_kills_of_device_broker_and_collector_lose_and_double_nothing(tmp_path: Path) -> None:
    result = telemetry_kills.run(tmp_path, kills=KILLS, seed=depth.SEED)
    print(f"\n{result}")
    assert (result.lost, result.doubled, result.gaps) == (0, 0, 0), result
    assert sum(result.kills.values()) == KILLS
    assert result.durable > KILLS
