"""JSON Schema, what of it a constraint honours. A keyword that is not on the list is refused by name, never ignored."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from fieldlm.core.errors import InputError
from fieldlm.engines.rules.schema_dialects import EXACT, plain

MAX_DEPTH = 48  # schemas within schemas
MAX_PARTS = 5000  # schemas in all: each may refer to the next, and a compiler goes down into all of them
MAX_PATTERNS = 100  # of keys: each is held apart from all others, 200 take four seconds and 1000 minutes
MAX_OPTIONAL = (
    450  # keys of an object that may be left out: beyond 499 the compiler gives up in the middle of an answer
)
MAX_COUNT = 100_000  # of characters or items a keyword may ask for; a grammar unrolls some of them
MAX_REPEATS = 1_000_000  # product of the counts in a regular expression, which its automaton would unroll
MULTIPLES = (
    0.0001,
    1000,
)  # what a number may be a multiple of: an automaton counts the remainders, for minutes if many

# fmt: off
HONOURED = frozenset((
    "type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "$defs", "definitions", "properties", "required",
    "additionalProperties", "patternProperties", "minProperties", "maxProperties", "items", "prefixItems", "minItems",
    "maxItems", "minLength", "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "multipleOf",
))
"""Keywords that the compiler turns into grammar; for values of them that it cannot do, it raises itself."""
ANNOTATIONS = frozenset((
    "title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly", "discriminator",
    "$comment", "$schema", "$id", "strict", "contentMediaType", "contentSchema",
))
"""Keywords that say nothing about which values are valid."""
# fmt: on
COMPOSED = ("anyOf", "oneOf", "allOf", "$ref")
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "const", "enum")
POSIX_CLASS = re.compile(r"\[[^\]]*\[:\^?\w+:\]")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")

Schema = Mapping[str, Any]


def checked(schema: Any) -> dict[str, Any]:
    """Return `schema` in the one dialect that is compiled, with every object closed that does not say it is open.

    A model that may add properties of its own invention does, so the few that are named are all there are: what it
    says is valid under the schema as it was, too. Raises InputError that names the keyword and where it stands.
    """
    if not isinstance(schema, dict):
        raise InputError("the schema is not a JSON object")
    schema = plain(cast(Schema, schema))
    found = list(parts(schema))
    if len(found) > MAX_PARTS:
        raise InputError(f"the schema is made of {len(found)} schemas, want at most {MAX_PARTS}")
    for where, part in found:
        _check(part, where)
    patterns = sum(len(part.get("patternProperties", ())) for _, part in found)
    if patterns > MAX_PATTERNS:
        raise InputError(f"the schema has {patterns} patterns in 'patternProperties', want at most {MAX_PATTERNS}")
    _check_references(found)
    # Objects that are laid over each other must not exclude each other's properties.
    is_laid_over = any("properties" in part and any(name in part for name in COMPOSED) for _, part in found) or any(
        not isinstance(inner, bool) and inner.keys() != {"pattern"}
        for _, part in found
        for inner in part.get("allOf", [])
    )
    closed = schema if is_laid_over else _closed(schema)
    for where, part in parts(closed):
        _check_keys(part, where)
    return closed


def loosened(schema: Any) -> dict[str, Any]:
    """Return `schema` without what cannot be honoured, for who does not insist; any object where that is not enough."""
    try:
        kept = _loose(plain(cast(Schema, schema)), MAX_DEPTH)
        return checked(kept)
    except (InputError, TypeError, AttributeError):
        return {"type": "object"}


def parts(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Yield `schema` and every schema in it, with where it stands; raises InputError for one that is none."""
    return _walk(schema, "$", MAX_DEPTH)


def check_repeats(expression: str) -> None:
    """Raise InputError for an expression that repeats what repeats, until its automaton has no end."""
    counts = [int(count) for count in re.findall(r"[{,](\d{1,9})\}", expression)]
    if math.prod(max(1, count) for count in counts) >= MAX_REPEATS:
        raise InputError(f"the counts in {expression[:60]!r} multiply to {MAX_REPEATS} or more; want fewer repetitions")


def _walk(schema: Schema, where: str, depth: int) -> Iterator[tuple[str, Schema]]:
    if not depth:
        raise InputError(f"the schema nests deeper than {MAX_DEPTH} levels at {where[:80]}…")
    yield where, schema
    for path, part in _parts(schema):
        if isinstance(part, Mapping):
            yield from _walk(cast(Schema, part), f"{where}.{path}", depth - 1)
        elif not isinstance(part, bool):
            raise InputError(f"the schema's {where}.{path} is not a schema")


def _parts(schema: Schema) -> Iterator[tuple[str, Any]]:
    """Yield the schemas directly inside `schema`, with where they stand."""
    for name in _MAPS:
        if name in schema:
            yield from ((f"{name}.{key}", part) for key, part in _of(schema, name, dict).items())
    for name in _LISTS:
        if name in schema:
            yield from ((f"{name}[{i}]", part) for i, part in enumerate(_of(schema, name, list)))
    for name in _SINGLE:
        if name in schema:
            yield name, schema[name]


def _of(schema: Schema, name: str, kind: type[Any]) -> Any:
    if not isinstance(schema[name], kind):
        raise InputError(f"the schema's keyword {name!r} wants {'an object' if kind is dict else 'a list'}")
    return schema[name]


def _is_known(name: str) -> bool:
    return name in HONOURED or name in ANNOTATIONS or (name.startswith("x-") and name != "x-guidance")


def _check(schema: Schema, where: str) -> None:
    for name in schema:
        if not _is_known(name):
            raise InputError(f"the schema's keyword {name!r} at {where} cannot be honoured; leave it out")
    for name in COUNTS:
        if isinstance(count := schema.get(name), int | float) and count > MAX_COUNT:
            raise InputError(f"the schema's keyword {name!r} at {where} is {count}, want at most {MAX_COUNT}")
    if isinstance(pattern := schema.get("pattern"), str):
        check_repeats(pattern)
        if POSIX_CLASS.search(pattern):
            raise InputError(f"the schema's pattern {pattern[:60]!r} at {where} has a POSIX class, which ECMA has not")
    least, most = MULTIPLES
    if isinstance(step := schema.get("multipleOf"), int | float) and not least <= step <= most:
        raise InputError(f"the schema's keyword 'multipleOf' at {where} is {step}, want {least} to {most}")
    for name in NUMBERS:
        if (number := next(_inexact(schema.get(name)), None)) is not None:
            raise InputError(
                f"the schema's keyword {name!r} at {where} has {number}, and a number beyond 2^53 would come out as "
                "another one; make it a string"
            )


def _check_references(found: list[tuple[str, Schema]]) -> None:
    """Raise InputError for a `$ref` that the compiler would look up in another place than its `$id` says."""
    base = str(found[0][1].get("$id", ""))
    moved = next((where for where, part in found[1:] if "$id" in part), None)
    for where, part in found:
        if "$ref" not in part:
            continue
        reference = str(part["$ref"])
        if moved is not None or not (reference.startswith("#") or (base and reference.startswith(f"{base}#"))):
            what = f"beside the '$id' at {moved}" if moved is not None else "because it leads out of the schema"
            raise InputError(f"the schema's keyword '$ref' at {where} cannot be honoured {what}; want '#/$defs/NAME'")


def _inexact(value: Any) -> Iterator[int | float]:
    """Yield the numbers in `value` that a double does not tell from their neighbours."""
    if isinstance(value, int | float) and abs(value) > EXACT:
        yield value
    elif isinstance(value, Mapping):
        for item in cast(Schema, value).values():
            yield from _inexact(item)
    elif isinstance(value, list):
        for item in cast(list[Any], value):
            yield from _inexact(item)


def _check_keys(schema: Schema, where: str) -> None:
    """Raise InputError for more keys than can be followed, and for a count of them that is not held.

    Of those without a name, one may come twice.
    """
    least = schema.get("minProperties")
    properties = cast(Schema, schema.get("properties", {}))
    sure = len(set(_names(schema)) & set(properties))
    if (optional := len(properties) - sure) > MAX_OPTIONAL:
        raise InputError(
            f"the schema's keyword 'properties' at {where} has {optional} keys that may be left out, want at most "
            f"{MAX_OPTIONAL}; name them in required, or ask for less at a time"
        )
    is_open = schema.get("additionalProperties") is not False or "patternProperties" in schema
    if isinstance(least, int | float) and least > sure + 1 and is_open:
        raise InputError(
            f"the schema's keyword 'minProperties' at {where} cannot be honoured where keys have no names: "
            "one may come twice; name them in properties"
        )


def _loose(part: Any, depth: int) -> Any:
    """Return the schema `part` without the keywords that are not known, or whose numbers are not exact."""
    if not isinstance(part, Mapping) or not depth:
        return part
    kept = {name: value for name, value in cast(Schema, part).items() if _is_known(name)}
    for name in NUMBERS:
        if any(_inexact(kept.get(name))):
            del kept[name]
    for name in _MAPS:
        if name in kept:
            kept[name] = {key: _loose(inner, depth - 1) for key, inner in kept[name].items()}
    for name in _LISTS:
        if name in kept:
            kept[name] = [_loose(inner, depth - 1) for inner in kept[name]]
    for name in _SINGLE:
        if name in kept:
            kept[name] = _loose(kept[name], depth - 1)
    return kept


def _closed(schema: Schema) -> dict[str, Any]:
    closed = dict(schema)
    for name in _MAPS:
        if name in schema:
            closed[name] = {key: _closed_part(part) for key, part in schema[name].items()}
    for name in _LISTS:
        if name in schema:
            closed[name] = [_closed_part(part) for part in schema[name]]
    for name in _SINGLE:
        if name in schema:
            closed[name] = _closed_part(schema[name])
    says = "additionalProperties" in schema or "patternProperties" in schema
    if "properties" in schema and not says and set(_names(schema)) <= set(schema["properties"]):
        closed["additionalProperties"] = False
    return closed


def _names(schema: Schema) -> list[Any]:
    names = schema.get("required", [])
    return [str(name) for name in cast(list[Any], names)] if isinstance(names, list) else [names]


def _closed_part(part: Any) -> Any:
    return _closed(cast(Schema, part)) if isinstance(part, Mapping) else part
