import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldlm.formats.record import FIELDS, SCHEMA, SCHEMAS, Record, WireError, pack, runs, unpack

KEY = {"device": "kiosk-1", "epoch": 7, "stream": "gen", "seq": 3}


def test_a_packed_record_comes_back_equal() -> None:
    record = msgspec.convert(KEY | {"kind": "generation", "answer": "é", "detail": {"a": "b"}, "margin": 1.5}, Record)
    assert unpack(pack(record), device="kiosk-1", epoch=7, stream="gen", seq=3) == record


def test_the_newest_schema_names_every_field() -> None:
    assert SCHEMAS[SCHEMA] == FIELDS


def test_the_first_schema_never_changes() -> None:
    assert SCHEMAS[1] == (
        "kind", "wall_ms", "mono_ms", "boot", "clock_ok", "generation", "model", "response", "session", "consent",
        "route", "outcome", "prompt_tokens", "completion_tokens", "cached_tokens", "queue_ms", "ttft_ms", "duration_ms",
        "margin", "prompt", "answer", "rating", "correction", "detail",
    )  # fmt: skip


@given(st.binary(max_size=200))
def test_a_damaged_row_raises_one_kind_of_error(row: bytes) -> None:
    with pytest.raises(WireError):
        unpack(row, device="kiosk-1", epoch=7, stream="gen", seq=3)


def test_runs_are_inclusive_ranges() -> None:
    assert runs([1, 2, 3, 7]) == [(1, 3), (7, 7)]
    assert runs([]) == []
