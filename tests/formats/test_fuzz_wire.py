"""Messages that are changed at random, as many as the depth of this run asks for."""

from tests.support import depth, fuzz_wire

INPUTS = depth.scaled(10_000, most=1_000_000)


def test_changed_messages_raise_one_kind_of_error_and_nothing_is_wrongly_accepted() -> None:
    count = fuzz_wire.run(INPUTS, depth.SEED)
    print(dict(count))
    assert count.total() == INPUTS
    assert all(
        count[f"{kind} {end}"] for kind in ("block", "body", "text", "policy") for end in ("accepted", "refused")
    )
