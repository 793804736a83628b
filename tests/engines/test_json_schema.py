"""What of JSON Schema is honoured, put into another word, or refused; and that what is written ends."""

import gc
import json
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fieldlm.core.errors import InputError
from fieldlm.engines import Engine, EngineOptions, Sampling, Schedule, open_engine
from fieldlm.engines.constraint import (
    CACHED_BYTES,
    COMPILING,
    MAX_ANDS,
    CompiledRule,
    Grammars,
    NotCompiledError,
    Rule,
    grammars,
)
from fieldlm.engines.rules.json_numbers import DIGITS, EXPONENT_DIGITS, DigitTable, NumberBound
from fieldlm.engines.rules.json_schema import MAX_OPTIONAL, MAX_PATTERNS, checked, loosened
from fieldlm.formats.bundle import Bundle
from tests.support.waiting import wait_until

BIG = 2**53 + 1
PATIENCE_S = 120.0
NAMED = {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}}


@pytest.fixture(scope="module")
def engine(base_bundle: Bundle) -> Iterator[Engine]:
    opened = open_engine(base_bundle, EngineOptions(threads=1, context=256, parallel=1))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def known(engine: Engine) -> Grammars:
    return grammars(engine)


def compiled(known: Grammars, schema: Any) -> Any:
    return known.compile(Rule("json_schema", json.dumps(schema)))


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        ({"enum": [1, BIG]}, "enum"),
        ({"const": {"id": [-BIG]}}, "const"),
        ({"const": 1e300}, "const"),
        ({"type": "integer", "minimum": BIG}, "minimum"),
        ({"type": "integer", "exclusiveMaximum": -BIG}, "exclusiveMaximum"),
        ({"properties": {"x": {"items": {"const": 123456789012345678901234567890}}}}, "const"),
    ],
)
def test_a_number_that_would_come_out_as_another_is_refused_by_name(schema: Any, name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}'.*2\\^53"):
        checked(schema)


def test_a_limit_beyond_what_is_exact_is_drawn_in(known: Grammars) -> None:
    rule = compiled(known, {"type": "integer", "minimum": 0, "maximum": 2**64 - 1})
    assert rule.accepts(str(2**53 - 1))
    assert not rule.accepts(str(2**53))


@pytest.mark.parametrize(
    "schema",
    [
        {
            "type": "object",
            "patternProperties": {"^a$": {"const": 1}},
            "additionalProperties": False,
            "minProperties": 2,
        },
        {"type": "object", "additionalProperties": {"const": 1}, "minProperties": 4, "maxProperties": 4},
        {"type": "object", "minProperties": 2},
        {"anyOf": [{"type": "object", "additionalProperties": True, "properties": {"a": {}}, "minProperties": 2}]},
    ],
)
def test_a_count_of_keys_that_may_come_twice_is_refused(schema: Any) -> None:
    with pytest.raises(InputError, match=r"'minProperties'.*twice"):
        checked(schema)


def test_a_count_of_keys_that_is_held_is_honoured(known: Grammars) -> None:
    some = compiled(known, {**NAMED, "minProperties": 1})
    assert some.accepts('{"b": 2}')
    assert not some.accepts("{}")
    few = compiled(
        known, {"type": "object", "additionalProperties": {"const": 1}, "minProperties": 1, "maxProperties": 1}
    )
    assert few.accepts('{"x": 1}')
    assert not few.accepts("{}")
    assert not few.accepts('{"x": 1, "y": 1}')


OF_OTHERS: list[tuple[Any, list[str], list[str]]] = [
    ({"type": "string", "nullable": True}, ['"x"', "null"], ["1"]),
    ({"type": "string", "nullable": False}, ['"x"'], ["null"]),
    ({"enum": ["x"], "nullable": True}, ['"x"'], ["null"]),
    ({"type": "array", "items": {"type": "boolean"}, "uniqueItems": False}, ["[true, true]"], []),
    ({"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"const": 1}}, ['{"a": 1}'], []),
    (
        {"type": "object", "propertyNames": {"pattern": "^a+$"}, "additionalProperties": {"const": 1}},
        ['{"aa": 1}'],
        ['{"b": 1}'],
    ),
    ({"type": "array", "items": [{"const": 1}, {"const": 2}]}, ["[1, 2]"], ["[1, 2, 3]", "[2]"]),
    ({"type": "array", "items": [{"const": 1}], "additionalItems": {"const": 5}}, ["[1, 5, 5]"], ["[1, 2]"]),
    ({**NAMED, "strict": True}, ["{}"], []),
    ({"type": "integer", "format": "int32"}, ["7"], []),
    ({"type": "string", "format": "password"}, ['"x"'], []),
    ({"type": "string", "format": "ulid", "pattern": "^[0-9A-Z]{2}$"}, ['"0A"'], ['"x"']),
    ({"type": "string", "contentEncoding": "base64"}, ['"QQ=="', '"QUJD"'], ['"Q"', '"Q-=="']),
    ({"type": "string", "contentMediaType": "application/json"}, ['"1"'], []),
    ({"type": "string", "format": "decimal"}, ['"-1.50"'], ['"1e5"', '"x"']),
    (
        {"type": "string", "format": "date"},
        ['"2024-02-29"', '"2000-02-29"'],
        ['"2021-02-29"', '"1900-02-29"', '"2020-04-31"', '"0000-01-01"'],
    ),
    ({"type": "string", "format": "time"}, ['"23:59:59.123456Z"'], ['"23:59:60Z"', '"10:00:00.1234567Z"']),
    (
        {"type": "string", "format": "date-time"},
        ['"2020-01-31T10:00:00+01:00"'],
        ['"2020-02-30T10:00:00Z"', f'"2020-01-01T00:00:00.{"1" * 40}Z"'],
    ),
    ({"type": "string", "format": "hostname"}, ['"a-b.example"', '"localhost"'], ['"xn--x"', '"-a"', f'"{"a" * 64}"']),
    ({"type": "string", "pattern": "^\\s\\S$"}, ['"\ufeffx"', '" x"'], ['"\u0085x"', '"x\ufeff"']),
    ({"type": "string", "format": "duration"}, ['"P1DT2H"'], [f'"P{"1" * 40}D"']),
]


@pytest.mark.parametrize(("schema", "valid", "invalid"), OF_OTHERS)
def test_what_frameworks_write_is_taken_for_what_it_says(
    known: Grammars, schema: Any, valid: list[str], invalid: list[str]
) -> None:
    rule = compiled(known, schema)
    assert [text for text in valid if not rule.accepts(text)] == []
    assert [text for text in invalid if rule.accepts(text)] == []


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "object", "propertyNames": {"maxLength": 3}}, "propertyNames"),
        ({"type": "string", "pattern": "^[[:alpha:]]$"}, "POSIX"),
        ({"type": "string", "pattern": "^a{5000}$", "maxLength": 6000}, "too many expressions"),
        (
            {"properties": {"x": {"items": {"type": "string", "pattern": "^a{5000}$", "maxLength": 6000}}}},
            "too many expressions",
        ),
        ({"oneOf": [{"type": "string"}, {"const": "a"}]}, "use anyOf"),
        ({"type": "string", "pattern": "^[\\S]$"}, "within brackets"),
        ({"$ref": "https://elsewhere.example/x"}, "leads out of the schema"),
        (
            {"$defs": {"a": {"$id": "b", "$defs": {"c": {}}}}, "properties": {"x": {"$ref": "#/$defs/a/$defs/c"}}},
            "cannot be honoured beside the '\\$id' at",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_when_it_is_compiled(known: Grammars, schema: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        compiled(known, schema)


def test_as_many_keys_as_may_be_left_out_are_followed_to_the_end(known: Grammars) -> None:
    most = {f"k{number}": {"type": "string"} for number in range(MAX_OPTIONAL)}
    assert compiled(known, {"type": "object", "properties": most}).accepts(f'{{"k{MAX_OPTIONAL - 1}": "a"}}')
    within: Any = {"type": "array", "items": {"type": "object", "properties": {**most, "more": {}, "needed": {}}}}
    with pytest.raises(InputError, match=f"has {MAX_OPTIONAL + 2} keys that may be left out"):
        compiled(known, within)
    within["items"]["required"] = ["more", "needed"]
    assert compiled(known, within).accepts('[{"more": 1, "needed": 2}]')


def test_who_does_not_insist_loses_what_cannot_be_honoured_and_no_more() -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1, "not": {}}, "b": {"enum": [BIG]}}, "required": ["a"]}
    kept = {"a": {"const": 1}, "b": {}}
    assert loosened(schema) == {"type": "object", "properties": kept, "required": ["a"], "additionalProperties": False}
    assert loosened({"type": "object", "minProperties": 2}) == {"type": "object"}


@pytest.mark.parametrize("schema", [{"type": "integer"}, {"type": "number"}, {"type": "integer", "minimum": 5}, {}])
def test_a_number_ends(engine: Engine, schema: Any) -> None:
    rule = compiled(
        grammars(engine), schema if schema else {"type": "array", "items": {"type": "number"}, "maxItems": 1}
    )
    biased = tuple((token, 50.0) for token, piece in enumerate(engine.vocabulary()) if piece.isdigit())
    asked = Sampling(max_tokens=60, constraint=rule, logit_bias=biased)
    *chunks, last = engine.start(engine.tokenize("How many?"), asked)
    text = "".join(chunk.text for chunk in [*chunks, last])
    assert (last.outcome, rule.accepts(text)) == ("stop", True)
    assert DIGITS <= sum(map(str.isdigit, text)) <= 2 * DIGITS + EXPONENT_DIGITS


def limited(pieces: list[bytes], said: bytes, after: str = "") -> list[bytes]:
    """Return what of `pieces` may follow `said`."""
    table = DigitTable([*pieces, said])
    bound = NumberBound(table, after.encode())
    bound.note(len(pieces))
    logits = np.array([*[0] * len(pieces), -np.inf], np.float32)
    allowed = bound.limit(logits)[: len(pieces)]
    return [piece for piece, logit in zip(pieces, allowed, strict=True) if np.isfinite(logit)]


def test_digits_are_counted_in_numbers_alone() -> None:
    pieces = [b"1", b"123", b"1,", b".", b"e", b"}"]
    full = b"1" * DIGITS
    assert limited(pieces, b'{"a": ' + full) == [b".", b"e", b"}"]
    assert limited(pieces, b'{"a": ' + full[2:]) == [b"1", b"1,", b".", b"e", b"}"]
    assert limited(pieces, b'{"a": "' + full) == pieces
    assert limited(pieces, b'{"a\\"": "x\\\\", "b": ' + full) == [b".", b"e", b"}"]
    assert limited(pieces, b"[1." + full) == [b".", b"e", b"}"]
    assert limited(pieces, b"[1.5e-99") == [b".", b"e", b"}"]
    assert limited(pieces, b"[true, 1") == pieces
    assert limited([b"1", b"12"], b"[" + full) == [b"1", b"12"]
    assert limited(pieces, b"<call>" + full, after="<call>") == [b".", b"e", b"}"]
    assert limited(pieces, b"Call " + full, after="<call>") == pieces


def test_what_is_kept_is_bounded_by_what_it_holds(known: Grammars) -> None:
    def large(mark: int) -> Rule:
        return Rule("json_schema", json.dumps({"enum": [f"{mark}-{i}-{'x' * 990}" for i in range(200)]}))

    first = known.compile(large(0))
    assert known.compile(large(0)) is first
    for mark in range(1, 8):
        known.compile(large(mark))
        assert known.kept.bytes <= CACHED_BYTES
    assert known.compile(large(7)) is known.compile(large(7))
    assert known.compile(large(0)) is not first


class SlowGrammars(Grammars):
    """Rules whose compiler takes until somebody lets it go on."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.goes_on = threading.Event()
        self.began: list[Rule] = []

    def _compile_here(self, rule: Rule) -> CompiledRule:
        self.began.append(rule)
        assert self.goes_on.wait(PATIENCE_S)
        return super()._compile_here(rule)


def test_nobody_waits_for_a_hard_form_longer_than_there_is_time(engine: Engine) -> None:
    slow = SlowGrammars(engine)
    rules = [Rule("regex", f"hard-{number}") for number in range(COMPILING + 1)]
    try:
        for rule in rules[:-1]:
            with pytest.raises(NotCompiledError, match="takes long to compile"):
                slow.compile(rule, time.monotonic())
        with pytest.raises(NotCompiledError, match=f"{COMPILING} other forms"):
            slow.compile(rules[-1], time.monotonic())
        with pytest.raises(NotCompiledError, match="takes long to compile"):
            slow.compile(rules[0], time.monotonic())
        wait_until(lambda: len(slow.began) == COMPILING)  # who asks again joins the compiler that is at it
        slow.goes_on.set()
        for rule in rules:
            assert slow.compile(rule).accepts(rule.text)
    finally:
        slow.goes_on.set()


def test_what_would_take_a_compiler_minutes_is_refused(known: Grammars) -> None:
    def patterns(count: int) -> dict[str, Any]:
        return {"type": "object", "patternProperties": {f"^a{i}-": {"type": "integer"} for i in range(count)}}

    checked(patterns(MAX_PATTERNS))
    with pytest.raises(InputError, match=f"{MAX_PATTERNS + 1} patterns in 'patternProperties', want at most"):
        checked(patterns(MAX_PATTERNS + 1))
    text = " & ".join(f"/(.|\\n)*a{i}(.|\\n)*/" for i in range(MAX_ANDS + 2))
    with pytest.raises(InputError, match=f"{MAX_ANDS + 1} times &, want at most {MAX_ANDS}"):
        known.compile(Rule("grammar", f"start: T\nT: {text}"))


def test_a_closed_engine_is_gone_with_its_vocabulary_and_forms_and_the_collector_is_not_needed(
    base_bundle: Bundle,
) -> None:
    gc.disable()
    try:
        engine = open_engine(base_bundle, EngineOptions(threads=1, context=128, parallel=1))
        forms = grammars(engine)
        sampling = Sampling(max_tokens=9, constraint=forms.compile(Rule("regex", "yes|no")))
        assert list(engine.start([1, 2, 3], sampling, terms=Schedule(deadline_s=60)))[-1].outcome
        left = [weakref.ref(engine), weakref.ref(forms)]
        engine.close()
        del engine, forms, sampling
        # The engine's thread may still be letting go.
        wait_until(lambda: [each() for each in left] == [None, None])
    finally:
        gc.enable()
