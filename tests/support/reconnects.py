"""How many connections a second a fleet asks for that lost its broker, or got its power back, in one moment.

Virtual time, the very `Backoff` that devices use. Every try during the outage fails, the first one after it succeeds.
"""

import random

from fieldlm.telemetry.backoff import Backoff

MOST_A_SECOND = 5000


def storm(backoff: Backoff, *, clients: int, outage_s: float, seed: int) -> list[int]:
    """Return the connections asked for in each second after the broker was lost, until every client is back."""
    uniform = random.Random(seed).uniform
    asked = [0]
    for _ in range(clients):
        now_s, failures = backoff.delay_s(0, uniform), 0
        while True:
            while int(now_s) >= len(asked):
                asked.append(0)
            asked[int(now_s)] += 1
            if now_s >= outage_s:
                break
            failures += 1
            now_s += backoff.delay_s(failures, uniform)
    return asked


def power_back(backoff: Backoff, *, clients: int, seed: int) -> list[int]:
    """Return the connections asked for in each second after every device was started in the same moment."""
    uniform = random.Random(seed).uniform
    asked = [0] * (int(backoff.window_s) + 1)
    for _ in range(clients):
        asked[int(backoff.start_s(uniform))] += 1
    return asked
