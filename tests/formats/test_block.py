import secrets
from typing import Any

import msgspec
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from fieldlm.formats import block
from fieldlm.formats.block import MAX_BODY_BYTES, Block, UnknownSchemaError, encode, parse
from fieldlm.formats.record import SCHEMAS, Record, WireError
from fieldlm.formats.response_ids import ResponseIds

KEY = b"0123456789abcdef"
LABEL = st.text(max_size=12)
COUNT = st.integers(-(2**62), 2**62)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
RECORDS = st.lists(
    st.builds(
        Record,
        device=st.just("kiosk-1"),
        epoch=st.just(2**62),
        stream=st.just("gen"),
        kind=st.sampled_from(["generation", "feedback", "update", "drop", "system"]),
        wall_ms=COUNT,
        mono_ms=COUNT,
        clock_ok=st.booleans(),
        response=LABEL,
        session=LABEL,
        prompt_tokens=COUNT,
        queue_ms=NUMBER,
        ttft_ms=st.floats(0, 1e6).map(lambda x: round(x, 1)),
        answer=st.text(max_size=50),
        detail=st.dictionaries(LABEL, LABEL, max_size=3),
    ),
    min_size=1,
    max_size=20,
)


def numbered(records: list[Record], first: int = 1) -> list[Record]:
    return [msgspec.structs.replace(record, seq=first + i) for i, record in enumerate(records)]


def day(count: int) -> list[Record]:
    """What a kiosk without consent tells on a busy morning."""
    return [
        Record(
            device="kiosk-1",
            epoch=1,
            stream="gen",
            seq=seq,
            kind="generation",
            wall_ms=1_760_000_000_000 + seq * 7300 + seq * seq % 977,
            mono_ms=9_000_000 + seq * 7300 + seq * seq % 977,
            boot="ab12cd34",
            generation="0123456789ab",
            model="SmolLM2-135M",
            response=f"chatcmpl-{secrets.token_hex(8)}",
            session=f"{seq // 9:016x}",
            route="local",
            outcome="stop",
            prompt_tokens=60 + seq * 31 % 80,
            completion_tokens=5 + seq * 17 % 50,
            cached_tokens=40,
            queue_ms=(seq * 13 % 20) / 10,
            ttft_ms=50 + (seq * 37 % 200) / 10,
            duration_ms=300 + (seq * 91 % 2000) / 10,
            margin=(seq * 53 % 800) / 100,
        )
        for seq in range(1, count + 1)
    ]


@given(RECORDS, st.integers(1, 1000))
def test_records_come_back_equal(records: list[Record], first: int) -> None:
    made = numbered(records, first)
    assert list(parse(encode(made)).records()) == made


def test_clocks_at_either_end_of_what_a_number_holds_come_back() -> None:
    ends = [(2**62, -(2**62)), (-(2**63), 2**63 - 1), (2**63 - 1, -(2**63)), (0, 0)]
    made = [msgspec.structs.replace(day(1)[0], seq=i, wall_ms=w, mono_ms=m) for i, (w, m) in enumerate(ends, 1)]
    assert list(parse(encode(made)).records()) == made


@given(st.binary(max_size=300))
def test_garbage_raises_one_kind_of_error(message: bytes) -> None:
    with pytest.raises(WireError):
        parse(message).records()


@given(RECORDS, st.data())
def test_a_damaged_block_raises_one_kind_of_error_or_is_a_block(records: list[Record], data: st.DataObject) -> None:
    message = bytearray(encode(numbered(records)))
    for _ in range(data.draw(st.integers(1, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = parse(bytes(message)).records()
    except WireError:
        return
    assert all(isinstance(record, Record) for record in found)


PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=5)
VALUE: st.SearchStrategy[Any] = st.recursive(
    PLAIN | st.binary(max_size=9), lambda inner: st.lists(inner, max_size=4), max_leaves=6
)
HOW = st.sampled_from(["i", "d", "f", "F", "s", "x", "?"])
COLUMN = st.none() | st.lists(VALUE, max_size=3).flatmap(lambda rest: HOW.map(lambda how: [how, *rest]))


@given(st.lists(COLUMN, min_size=25, max_size=25), st.integers(1, 3))
def test_wrong_columns_in_a_sound_body_raise_one_kind_of_error(columns: list[Any], count: int) -> None:
    columns[0] = ["i", b"\x02\x04\x06"[:count]]
    body = zstd.compress(msgspec.msgpack.encode(columns))
    head = Block(block.MAGIC, block.VERSION, 1, "kiosk-1", "gen", 1, 1, count, count, body)
    try:
        parse(msgspec.msgpack.encode(head)).records()
    except WireError:
        return


def test_a_small_block_that_unpacks_to_gigabytes_is_refused_before_it_is_unpacked() -> None:
    body = zstd.compress(b"\0" * (MAX_BODY_BYTES + 1))
    head = Block(block.MAGIC, block.VERSION, 1, "kiosk-1", "gen", 1, 1, 1, 1, body)
    with pytest.raises(WireError, match="limit"):
        parse(msgspec.msgpack.encode(head)).records()


@pytest.mark.parametrize("column", [["i", b"\xfe" + b"\xff" * 8 + b"\x03"], ["d", b"\xfe" + b"\xff" * 8 + b"\x03"]])
def test_a_number_that_no_store_can_hold_is_refused(column: list[Any]) -> None:
    columns = msgspec.msgpack.decode(zstd.decompress(parse(encode(day(1))).body))
    columns[1 + 12] = column
    body = zstd.compress(msgspec.msgpack.encode(columns))
    with pytest.raises(WireError, match="64 bits"):
        Block(block.MAGIC, block.VERSION, 1, "kiosk-1", "gen", 1, 1, 1, 1, body).records()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_time_that_is_no_number_is_refused(number: float) -> None:
    (record,) = day(1)
    with pytest.raises(WireError, match="finite"):
        parse(encode([msgspec.structs.replace(record, ttft_ms=number)])).records()


def test_one_long_text_named_thousands_of_times_is_refused() -> None:
    records = day(128)
    columns = msgspec.msgpack.decode(zstd.decompress(parse(encode(records)).body))
    columns[-4] = ["s", ["x" * 100_000], b"\0" * 128]
    body = zstd.compress(msgspec.msgpack.encode(columns))
    head = Block(block.MAGIC, block.VERSION, 1, "kiosk-1", "gen", 1, 1, 128, 128, body)
    with pytest.raises(WireError, match="too long together"):
        head.records()


def test_the_head_of_an_unknown_schema_can_be_read() -> None:
    made = msgspec.structs.replace(parse(encode(day(3))), schema=99)
    again = parse(msgspec.msgpack.encode(made))
    assert (again.first, again.last, again.count) == (1, 3, 3)
    with pytest.raises(UnknownSchemaError):
        again.records()


def test_a_block_may_leave_out_numbers_that_no_longer_exist() -> None:
    kept = [record for record in day(10) if record.seq in (4, 6, 10)]
    made = parse(encode(kept, first=2))
    assert (made.first, made.last, made.count) == (2, 10, 3)
    assert [record.seq for record in made.records()] == [4, 6, 10]


@pytest.mark.parametrize("change", [{"count": 5000}, {"first": 0}, {"last": 1}, {"stream": "log"}, {"epoch": -1}])
def test_an_impossible_head_is_refused(change: dict[str, Any]) -> None:
    made = msgspec.structs.replace(parse(encode(day(3))), **change)
    with pytest.raises(WireError):
        parse(msgspec.msgpack.encode(made))


def test_a_record_among_128_takes_at_most_25_bytes() -> None:
    assert len(encode(day(128))) / 128 <= 25


def named(count: int, key: bytes = KEY, prefix: str = "chatcmpl-") -> list[Record]:
    """A day whose answers have a device's own ids, and whose customers ask a few times each."""
    ids = ResponseIds(key)
    return [
        msgspec.structs.replace(r, response=ids.next(prefix), session=f"{r.seq // 3 * 2654435761:016x}")
        for r in day(count)
    ]


@given(st.integers(1, 300), st.binary(min_size=16, max_size=16), st.sampled_from(["chatcmpl-", "resp_", ""]))
def test_ids_of_a_device_come_back_equal_from_a_few_bits_each(count: int, key: bytes, prefix: str) -> None:
    records = named(count, key, prefix)
    message = encode(records, id_key=key)
    assert list(parse(message).records()) == records
    if count >= 5:
        assert len(message) < len(encode(records))


def test_with_a_devices_own_ids_a_record_among_128_takes_at_most_17_bytes() -> None:
    message = encode(named(128), id_key=KEY)
    assert (parse(message).schema, len(message) / 128 <= 17) == (2, True)


def test_ids_of_another_key_and_texts_that_are_no_ids_come_back_equal() -> None:
    mixed = [*named(9)[:8], msgspec.structs.replace(day(9)[8], response="resp_1")]
    for records in (named(128, b"f" * 16), named(1), mixed, day(40)):
        assert list(parse(encode(records, id_key=KEY)).records()) == records


def test_who_names_few_customers_writes_blocks_that_the_first_version_reads() -> None:
    assert parse(encode(day(9))).schema == 1
    assert parse(encode(named(128))).schema == 2


@pytest.mark.parametrize(
    "column",
    [
        ["x", "p" * (1 << 20), 1, b"\1" * 128],
        ["h", "p" * (1 << 20), 1, b"\1", b"\0" * 128],
        ["k", "p" * (1 << 20), KEY, ["i", b"\0" * 128]],
        ["k", "p", KEY[1:], ["i", b"\0" * 128]],
        ["k", "p", KEY, ["i", b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x03" * 128]],
        ["k", "p", KEY, ["k", "p", KEY, ["i", b"\0" * 128]]],
        ["h", "p", 0, b"\1" * 8, b"\0" * 128],
        ["h", "p", 3, b"\1" * 8, b"\0" * 128],
        ["h", "p", 1, b"\1" * 8, b"\x20" * 128],
        ["h", "p", 1, b"\1" * 8, b"\1" * 128],
    ],
)
def test_hex_digits_and_ids_that_cannot_be_are_refused(column: list[Any]) -> None:
    made = parse(encode(day(128)))
    columns = msgspec.msgpack.decode(zstd.decompress(made.body))
    columns[1 + SCHEMAS[2].index("response")] = column
    body = zstd.compress(msgspec.msgpack.encode(columns))
    with pytest.raises(WireError):
        msgspec.structs.replace(made, schema=2, body=body).records()


def test_blocks_of_the_second_schema_can_be_read_for_ever() -> None:
    records = parse(bytes.fromhex(FROZEN_2)).records()
    assert [(r.response, r.session) for r in records] == [
        (f"chatcmpl-{name}", f"{seq // 2:016x}") for seq, name in enumerate(FROZEN_IDS, 1)
    ]


def test_blocks_of_the_first_version_can_be_read_for_ever() -> None:
    message = bytes.fromhex(FROZEN)
    assert [(r.seq, r.kind, r.response) for r in parse(message).records()] == [
        (1, "generation", "chatcmpl-00"),
        (2, "generation", "chatcmpl-01"),
    ]


FROZEN = (
    "9aa3666c620101a76b696f736b2d31a367656e01010202c44928b52ffd204b0502006403dc001992a169c402020493a17391"
    "aa67656e65726174696f6ec4020000c0c0c002c0c094a178a963686174636d706c2d01c4020001c0020070bd010cea09"
)
FROZEN_2 = (
    "9aa3666c620102a76b696f736b2d31a367656e02010808c48528b52ffd20b1e503004406dc001992a169c408020406080a0c"
    "0e1093a17391aa67656e65726174696f6ec40800c0c0c0c0c094a16ba963686174636d706c2dc41030313233343536373839"
    "61626364656692a164c40ae0c595a168a008c4280001020304c4080002020404060608c00900ae4ce00e38b6e20a577250f5"
    "0a38cb141ecac013"
)
FROZEN_IDS = [
    "90d752d3a430555c",
    "1a60e5c308983274",
    "44c7e9e3716a177f",
    "426923ca25c0149f",
    "0b8137c792d325a6",
    "ba15dcfb83518a06",
    "47579e30b21d76c0",
    "baaef3e0be292166",
]
