import random

from fieldlm.telemetry.backoff import Backoff
from tests.support.reconnects import MOST_A_SECOND, power_back, storm

SHARE = 20  # of a million clients


def test_a_million_that_lost_their_broker_stay_below_five_thousand_connections_a_second() -> None:
    backoff = Backoff(window_s=600)
    peaks = [max(storm(backoff, clients=1_000_000 // SHARE, outage_s=outage, seed=3)) for outage in (0, 650, 1500)]
    # A twentieth of the fleet has more noise for its size: 4.5 standard deviations of its busiest second.
    noise = 4.5 * (MOST_A_SECOND / SHARE) ** 0.5
    assert max(peaks) <= MOST_A_SECOND / SHARE + noise
    assert max(power_back(backoff, clients=1_000_000 // SHARE, seed=3)) * SHARE <= MOST_A_SECOND


def test_without_a_window_the_same_fleet_would_storm() -> None:
    assert max(storm(Backoff(), clients=1_000_000 // SHARE, outage_s=0, seed=3)) * SHARE > 100 * MOST_A_SECOND


def test_waits_grow_to_their_cap_and_use_their_whole_range() -> None:
    dice = random.Random(1)
    for failures, ceiling_s in ((0, 0.5), (3, 4.0), (9, 256.0), (40, 300.0)):
        waits = [Backoff().delay_s(failures, dice.uniform) for _ in range(2000)]
        assert 0 <= min(waits) < 0.02 * ceiling_s
        assert 0.98 * ceiling_s < max(waits) <= ceiling_s


def test_a_small_fleet_does_not_wait_at_its_start_and_a_large_one_spreads_it() -> None:
    assert Backoff().start_s() == 0
    assert Backoff(window_s=600).start_s(lambda _, last: last) == 300
