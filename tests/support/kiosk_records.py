"""Telemetry records as a kiosk makes them on a busy morning, for tests and benchmarks of the wire."""

import random

from fieldlm.formats.record import Record
from fieldlm.formats.response_ids import ResponseIds

ID_KEY = b"0123456789abcdef"


def morning(count: int, seed: int = 1) -> list[Record]:
    """What a kiosk tells of a busy morning in mode `metrics`; times and lengths are drawn as people and models vary."""
    ids = ResponseIds(ID_KEY)
    dice, wall_ms, session, left = random.Random(seed), 1_760_000_000_000, "", 0
    made: list[Record] = []
    for _ in range(count):
        if left == 0:
            session, left = f"{dice.getrandbits(64):016x}", dice.randint(1, 6)
        left -= 1
        wall_ms += int(dice.expovariate(1 / 9000))
        tokens = dice.randint(6, 40)
        made.append(
            Record(
                device="kiosk-1", stream="gen", kind="generation", wall_ms=wall_ms, mono_ms=wall_ms - 1_759_000_000_000,
                boot="ab12cd34", generation="0123456789ab", model="SmolLM2-135M",
                response=ids.next("chatcmpl-"), session=session, route="local", outcome="stop",
                prompt_tokens=dice.randint(90, 180), completion_tokens=tokens, cached_tokens=80,
                queue_ms=round(dice.expovariate(2), 1), ttft_ms=round(dice.gauss(60, 8), 1),
                duration_ms=round(60 + tokens * dice.gauss(9, 0.7), 1), margin=round(dice.gauss(6, 2), 2),
            )
        )  # fmt: skip
    return made
