"""The telemetry record: one exchange, or one event of a device, as it travels home.

The key is `(device, epoch, stream, seq)`. `seq` starts at 1 and has no gaps within an epoch and a stream; `epoch` is a
random number that a spool gets when it is made, so a wiped or quarantined spool never reuses a key. An empty string or
a zero means "not known" or "not allowed to travel". Times of one boot compare by `mono_ms`; `wall_ms` is what the
clock said, and `clock_ok` whether it can be believed.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import msgspec

from fieldlm.core.errors import FieldlmError

Stream = Literal["ota", "fb", "sys", "gen"]
Kind = Literal["generation", "feedback", "update", "drop", "system", "forget", "sketch"]

STREAMS: tuple[Stream, ...] = get_args(Stream)
"""In the order in which they travel when there is room for one only."""
CRITICAL: frozenset[str] = frozenset({"ota", "fb"})
"""Streams that go to the disk at once instead of waiting for company."""


LARGE = "large"
"""The route of what a large model beside the device's own answered: it says nothing of the generation that served."""


class WireError(FieldlmError):
    """Bytes from another process are not what they claim to be."""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is told about one exchange or event. A new field takes a new schema (`SCHEMAS`)."""

    device: str
    epoch: int = 0
    stream: Stream
    seq: int = 0
    kind: str
    """One of `Kind`, or a word of a newer device: who reads takes any."""
    wall_ms: int = 0
    mono_ms: int = 0
    boot: str = ""
    clock_ok: bool = True
    generation: str = ""
    model: str = ""
    response: str = ""
    """The id the client got; feedback names it again."""
    session: str = ""
    """The customer, as a keyed hash that only this device can make."""
    consent: str = ""
    route: str = ""
    outcome: str = ""
    """How an answer ended, in the engine's word. A new word needs no new schema: who reads takes any."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    queue_ms: float = 0.0
    ttft_ms: float = 0.0
    duration_ms: float = 0.0
    margin: float = 0.0
    prompt: str = ""
    """The list of messages as JSON. Empty without consent."""
    answer: str = ""
    rating: str = ""
    correction: str = ""
    detail: dict[str, str] = {}


_FIRST = (
    "kind", "wall_ms", "mono_ms", "boot", "clock_ok", "generation", "model", "response", "session", "consent",
    "route", "outcome", "prompt_tokens", "completion_tokens", "cached_tokens", "queue_ms", "ttft_ms", "duration_ms",
    "margin", "prompt", "answer", "rating", "correction", "detail",
)  # fmt: skip
FIELDS = _FIRST
"""What a row holds beside its key, in the order of the newest schema."""
SCHEMA = 1
"""How rows are written, on the disk and in blocks; a block that is written more tightly says 2 (`block`)."""
SCHEMAS: dict[int, tuple[str, ...]] = {1: _FIRST, 2: _FIRST}
"""Field names by schema id. An id's names never change; a new field makes a new id with one more name at the end."""


def pack(record: Record) -> bytes:
    """Return the record without its key as a positional row."""
    return msgspec.msgpack.encode([SCHEMA, *(getattr(record, name) for name in SCHEMAS[SCHEMA])])


def unpack(row: bytes, *, device: str, epoch: int, stream: str, seq: int) -> Record:
    """Return the record that `pack` wrote, with its key; raises WireError when the row is damaged.

    A newer version's row is read as far as its fields are known: after an update that was taken back they stay.
    """
    try:
        schema, *values = msgspec.msgpack.decode(row, type=list[Any])
        newest = max(SCHEMAS)
        if isinstance(schema, int) and schema > newest:
            schema, values = newest, values[: len(SCHEMAS[newest])]
        fields = dict(zip(SCHEMAS[schema], values, strict=True))
    except (msgspec.MsgspecError, RecursionError, KeyError, TypeError, ValueError) as error:
        raise WireError(f"a stored record cannot be read: {error}") from error
    return make(fields | {"device": device, "epoch": epoch, "stream": stream, "seq": seq})


def make(fields: dict[str, Any]) -> Record:
    """Return a checked Record; raises WireError when a field has the wrong type."""
    try:
        return msgspec.convert(fields, Record)
    except msgspec.ValidationError as error:
        raise WireError(f"not a record: {error}") from error


def runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return ascending `numbers` as inclusive ranges: [1, 2, 3, 7] gives [(1, 3), (7, 7)]."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found
