"""The block, many records of one device and stream as one message: columns, differences, zstd.

    msgpack [ "flb", version, schema, device, stream, epoch, first, last, count, body ]
    body = zstd( msgpack [ column, column, … ] )     one entry per field of the schema, seq before them

The head can be read whatever the schema is, so a collector that is older than a device keeps the body as it is and
still acknowledges it. A block speaks for every seq from `first` to `last`: those that are not in it no longer exist on
the device, and a `drop` record tells why.

A column is nil (every value is the field's default), or a list that starts with how it is written:
["i", bytes] integers, ["d", bytes] differences of integers, both as zigzag varints; ["f", scale, bytes] decimals
times `scale`; ["F", bytes] 8-byte floats; ["s", texts, bytes] texts, each once, and which one each record has;
["x", prefix, size, bytes] texts that are a prefix and hex digits, `size` bytes each. Schema 2 has the same fields and
two more ways: ["h", prefix, size, bytes, bytes] is "s" whose texts are as in "x"; ["k", prefix, key, column] are the
ids of `response_ids`, as a column of the numbers they were made from. Whoever knows only schema 1 keeps the body.
"""

import math
import struct
import sys
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any, cast, get_type_hints

import msgspec

from fieldlm.formats import response_ids
from fieldlm.formats.record import SCHEMA, SCHEMAS, STREAMS, Record, WireError, make

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAGIC = "flb"
VERSION = 1
MAX_BLOCK_BYTES = 1 << 20
MAX_BODY_BYTES = 8 << 20
MAX_WINDOW_LOG = 23  # a window as large as that
MAX_RECORDS = 4096
INT64 = 1 << 63
COMPACT_SCHEMA = 2
_COMPACT = ("h", "k")
MAX_HEX_BYTES = 64
FEW = 2
"""So few texts are not worth a way of their own."""
_HEX = set("0123456789abcdef")
_SCALES = (1, 10, 100, 1000)
_TYPES: dict[str, Any] = get_type_hints(Record)
_EMPTY: dict[Any, Any] = {int: 0, bool: False, float: 0.0, str: ""}


class UnknownSchemaError(WireError):
    """The block was written by a newer device; keep its body and read it later."""


class Block(msgspec.Struct, frozen=True, array_like=True):
    """The head of a block, and its body still packed."""

    magic: str
    version: int
    schema: int
    device: str
    stream: str
    epoch: int
    first: int
    last: int
    count: int
    body: bytes

    def plain(self) -> bytes:
        """Return the body unpacked, whatever its schema is; raises WireError."""
        try:
            return _unzip(self.body)
        except ValueError as error:
            raise WireError(f"block {self.first}–{self.last} of {self.device} is damaged: {error}") from error

    def records(self) -> tuple[Record, ...]:
        """Unpack the body; raises UnknownSchemaError or WireError, never anything else, and uses bounded memory."""
        if self.schema not in SCHEMAS:
            raise UnknownSchemaError(f"block of {self.device} has schema {self.schema}, known: {sorted(SCHEMAS)}")
        try:
            return _records(self)
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError, struct.error) as error:
            raise WireError(f"block {self.first}–{self.last} of {self.device} is damaged: {error}") from error


def encode(records: Sequence[Record], *, first: int | None = None, id_key: bytes = b"") -> bytes:
    """Pack records of one device, epoch and stream, in order of seq, into a message.

    `first` is where the block starts to speak, by default the first record's seq. With `id_key`, the key of the
    device's response ids, these cost next to nothing; it travels in the block.
    """
    head = records[0]
    assert {(r.device, r.epoch, r.stream) for r in records} == {(head.device, head.epoch, head.stream)}
    columns = [_pack_integers([r.seq for r in records])]
    columns += [_pack(name, [getattr(r, name) for r in records], records, id_key) for name in SCHEMAS[SCHEMA]]
    schema = COMPACT_SCHEMA if any(column and column[0] in _COMPACT for column in columns) else SCHEMA
    body = zstd.compress(msgspec.msgpack.encode(columns), level=15)
    start, last = head.seq if first is None else first, records[-1].seq
    block = Block(MAGIC, VERSION, schema, head.device, head.stream, head.epoch, start, last, len(records), body)
    return msgspec.msgpack.encode(block)


def parse(message: bytes) -> Block:
    """Read the head of a message; raises WireError unless it is a block this version may look at."""
    if len(message) > MAX_BLOCK_BYTES:
        raise WireError(f"a message of {len(message)} bytes is no block; the limit is {MAX_BLOCK_BYTES}")
    try:
        block = msgspec.msgpack.decode(message, type=Block)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a block: {error}") from error
    if block.magic != MAGIC or block.version != VERSION:
        raise WireError(f"not a block of version {VERSION}: {block.magic[:8]!r} version {block.version}")
    spans = 1 <= block.first <= block.last < INT64 and 1 <= block.count <= block.last - block.first + 1
    if not spans or block.count > MAX_RECORDS or not 0 <= block.epoch < INT64 or block.stream not in STREAMS:
        raise WireError(
            f"impossible block head: {block.stream[:8]!r} {block.first}–{block.last}, {block.count} records"
        )
    return block


def _records(block: Block) -> tuple[Record, ...]:
    names = SCHEMAS[block.schema]
    columns = msgspec.msgpack.decode(_unzip(block.body), type=list[list[Any] | None])
    if len(columns) != len(names) + 1:
        raise ValueError(f"{len(columns)} columns, schema {block.schema} has {len(names) + 1}")
    seqs = cast(list[int], _unpack("seq", columns[0], block.count))
    inside = block.first <= seqs[0] and seqs[-1] == block.last
    if not inside or any(a >= b for a, b in pairwise(seqs)):
        raise ValueError("its numbers do not ascend within its head's range")
    values = {n: _unpack(n, c, block.count) for n, c in zip(names, columns[1:], strict=True)}
    values["mono_ms"] = [wall - lead for wall, lead in zip(values["wall_ms"], values["mono_ms"], strict=True)]
    for name in names:
        if _kind(name) is int:
            values[name] = [*map(_int64, values[name])]
    key = {"device": block.device, "epoch": block.epoch, "stream": block.stream}
    rows = zip(*values.values(), strict=True)
    return tuple(
        make(key | {"seq": s} | dict(zip(values, row, strict=True))) for s, row in zip(seqs, rows, strict=True)
    )


def _unzip(body: bytes) -> bytes:
    # Ask the frame first: decompress() would allocate whatever size the frame claims.
    try:
        size = zstd.get_frame_info(body).decompressed_size
        if not size or size > MAX_BODY_BYTES:
            raise ValueError(f"its body claims {size} bytes, the limit is {MAX_BODY_BYTES}")
        reader = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG})
        text = reader.decompress(body)
    except zstd.ZstdError as error:
        raise ValueError(str(error)) from error
    if not reader.eof or reader.unused_data:
        raise ValueError("its body is cut off, or goes on behind its end")
    return text


def _pack(name: str, values: list[Any], records: Sequence[Record], id_key: bytes) -> list[Any] | None:
    if name == "mono_ms":
        # Both clocks tick alike, so their distance hardly changes and costs nothing.
        values = [r.wall_ms - r.mono_ms for r in records]
    if name == "detail":
        values = [msgspec.json.encode(v, order="deterministic").decode() if v else "" for v in values]
    kind = _kind(name)
    if all(value == _EMPTY[kind] for value in values):
        return None
    if name == "response" and id_key and (derived := _pack_ids(values, id_key)):
        return derived
    writers: dict[Any, Callable[[list[Any]], list[Any]]] = {
        int: _pack_integers, bool: _pack_integers, float: _pack_floats, str: _pack_texts,
    }  # fmt: skip
    return writers[kind](values)


def _kind(name: str) -> Any:
    kind = _TYPES[name]
    return kind if kind in _EMPTY else str


def _pack_integers(values: Sequence[int]) -> list[Any]:
    plain = _varints(values)
    steps = _varints([b - a for a, b in pairwise([0, *values])])
    return ["d", steps] if len(steps) < len(plain) else ["i", plain]


def _pack_floats(values: Sequence[float]) -> list[Any]:
    for scale in _SCALES:
        if all(abs(v) < 1e12 and round(v * scale) / scale == v for v in values):
            return ["f", scale, _varints([round(v * scale) for v in values])]
    return ["F", struct.pack(f"<{len(values)}d", *values)]


def _pack_texts(values: Sequence[str]) -> list[Any]:
    texts = list(dict.fromkeys(values))
    hexed = _pack_hex(texts) if len(texts) > FEW else None
    if hexed and len(texts) == len(values):
        return ["x", *hexed]
    places = {text: index for index, text in enumerate(texts)}
    where = _varints([places[value] for value in values])
    return ["h", *hexed, where] if hexed else ["s", texts, where]


def _pack_hex(values: Sequence[str]) -> tuple[str, int, bytes] | None:
    """Random ids cannot be compressed, but half of their hex digits' bits can be left out."""
    prefix, size = _hex_form(values[0])
    tails = [value[len(prefix) :] for value in values]
    alike = all(v.startswith(prefix) and len(t) == size for v, t in zip(values, tails, strict=True))
    if not size or size % 2 or size > 2 * MAX_HEX_BYTES or not alike or set().union(*tails) - _HEX:
        return None
    return prefix, size // 2, b"".join(bytes.fromhex(tail) for tail in tails)


def _pack_ids(values: Sequence[str], key: bytes) -> list[Any] | None:
    """Return ids as their numbers, when they are this key's: the numbers of others are as random as the ids."""
    hexed = _pack_hex(values)
    if hexed is None or 2 * hexed[1] != response_ids.DIGITS:
        return None
    prefix, *_ = hexed
    column = _pack_integers(response_ids.numbers([value[len(prefix) :] for value in values], key))
    # What others' numbers take, or those of one answer alone, the digits would take too.
    return ["k", prefix, key, column] if len(column[1]) + len(key) < hexed[1] * len(values) else None


def _hex_form(text: str) -> tuple[str, int]:
    """Return what stands before a text's hex digits, and how many there are."""
    at = max(text.rfind("-"), text.rfind("_")) + 1
    return text[:at], len(text) - at


def _varints(values: Sequence[int]) -> bytes:
    out = bytearray()
    for value in values:
        rest = value << 1 if value >= 0 else (-value << 1) - 1
        while rest > 0x7F:
            out.append(rest & 0x7F | 0x80)
            rest >>= 7
        out.append(rest)
    return bytes(out)


def _unpack(name: str, column: list[Any] | None, count: int) -> list[Any]:
    kind = _kind(name)
    if column is None:
        values: list[Any] = [_EMPTY[kind]] * count
    else:
        values = _unpack_column(column, count)
    if name == "detail":
        return [msgspec.json.decode(v, type=dict[str, str]) if v else {} for v in values]
    if kind is bool:
        return [bool(value) for value in values]
    return _finite(values) if kind is float else values


def _finite(values: list[Any]) -> list[float]:
    """One NaN in a fleet's times would make every mean a NaN."""
    floats = [float(value) for value in values]
    if not all(map(math.isfinite, floats)):
        raise ValueError("a number is not finite")
    return floats


def _unpack_column(column: list[Any], count: int) -> list[Any]:
    match column:
        case ["i" | "d" as way, bytes(raw)]:
            return _unpack_numbers(way, raw, count)
        case ["f", int(scale), bytes(raw)] if scale in _SCALES:
            return [value / scale for value in _integers(raw, count)]
        case ["F", bytes(raw)]:
            return list(struct.unpack(f"<{count}d", raw))
        case ["s", list(texts), bytes(places)]:
            return _choose(texts, _integers(places, count))
        case _:
            return _unpack_hex(column, count)


def _unpack_numbers(way: str, raw: bytes, count: int) -> list[int]:
    numbers = _integers(raw, count)
    return [*accumulate(numbers)] if way == "d" else numbers


def _unpack_hex(column: list[Any], count: int) -> list[Any]:
    match column:
        case ["x", str(prefix), int(size), bytes(raw)] if len(raw) == size * count:
            return _hex_texts(prefix, size, raw)
        case ["h", str(prefix), int(size), bytes(raw), bytes(places)]:
            return _choose(_hex_texts(prefix, size, raw), _integers(places, count))
        case ["k", str(prefix), bytes(key), ["i" | "d" as way, bytes(raw)]] if len(key) == response_ids.KEY_BYTES:
            _check_length(count * (len(prefix) + response_ids.DIGITS))
            found = [_int64(number) for number in _unpack_numbers(way, raw, count)]
            return [prefix + digits for digits in response_ids.digits(found, key)]
        case _:
            raise ValueError("a column is written in an unknown way")


def _choose(texts: list[Any], places: list[int]) -> list[Any]:
    if min(places) < 0:
        raise ValueError("a text has a negative place")
    chosen = [texts[place] for place in places]
    _check_length(sum(map(len, chosen)))
    return chosen


def _hex_texts(prefix: str, size: int, raw: bytes) -> list[str]:
    if not 0 < size <= MAX_HEX_BYTES or len(raw) % size:
        raise ValueError("hex digits are cut off")
    _check_length(len(raw) // size * (len(prefix) + 2 * size))
    return [prefix + raw[i : i + size].hex() for i in range(0, len(raw), size)]


def _check_length(chars: int) -> None:
    """A small message may name one long text thousands of times."""
    if chars > MAX_BODY_BYTES:
        raise ValueError("its texts are too long together")


def _int64(value: int) -> int:
    if not -INT64 <= value < INT64:
        raise ValueError("a number does not fit in 64 bits")
    return value


def _integers(raw: bytes, count: int) -> list[int]:
    values: list[int] = []
    value = shift = 0
    for byte in raw:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            # A step between two numbers of 64 bits may need a bit or two more; what they come to is looked at later.
            values.append(value >> 1 if not value & 1 else -((value + 1) >> 1))
            value = shift = 0
        elif shift > 70:
            raise ValueError("a number does not fit in 64 bits")
    if len(values) != count or shift:
        raise ValueError(f"a column has {len(values)} values instead of {count}")
    return values
