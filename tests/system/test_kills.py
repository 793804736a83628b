"""Kill -9 at random: benchmarks/telemetry_kills.py has the machinery, and does ten thousand when asked."""

import os
import random
from pathlib import Path

import pytest

from benchmarks import telemetry_kills
from tests.support.brokers import MOSQUITTO

KILLS = 500


@pytest.mark.skipif(not MOSQUITTO and os.environ.get("CI") != "true", reason="Mosquitto is not installed")
def test_random_kills_of_device_broker_and_collector_lose_and_double_nothing(tmp_path: Path) -> None:
    seed = int(os.environ.get("FIELDLM_SEED") or random.SystemRandom().randrange(1 << 32))
    result = telemetry_kills.run(tmp_path, kills=KILLS, seed=seed)
    print(f"\n{result}")
    assert (result.lost, result.doubled, result.gaps) == (0, 0, 0), result
    assert sum(result.kills.values()) == KILLS
    assert result.durable > KILLS
