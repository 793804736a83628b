"""A share of the fuzzing in benchmarks/fuzz_wire.py, which does a million inputs when asked."""

import os
import random

from benchmarks import fuzz_wire

INPUTS = 100_000


def test_changed_messages_raise_one_kind_of_error_and_nothing_is_wrongly_accepted() -> None:
    seed = int(os.environ.get("FIELDLM_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"\nseed {seed}, set FIELDLM_SEED to repeat")
    count = fuzz_wire.run(INPUTS, seed)
    print(dict(count))
    assert count.total() == INPUTS
    assert all(
        count[f"{kind} {end}"] for kind in ("block", "body", "text", "policy") for end in ("accepted", "refused")
    )
