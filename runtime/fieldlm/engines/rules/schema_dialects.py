"""JSON Schema dialects (draft 7, OpenAPI 3.0, what frameworks add) put into the one that is compiled.

What says nothing is left out, what another word says gets that word, and a time gets the pattern of one that exists and
ends. Whatever is valid under the result is valid under the schema as it came. What is not known here stays as it is.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from fieldlm.core.errors import InputError

MOST_LEVELS = 100  # schemas and what lies between them; a walk that comes later says which schema is too deep
EXACT = 2**53 - 1  # the compiler reads numbers as doubles, and what is beyond comes out as another one

# fmt: off
COMPILED_FORMATS = frozenset((
    "date-time", "time", "date", "duration", "email", "ipv4", "ipv6", "uuid", "uri", "unknown",
))
SILENT_FORMATS = frozenset((
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float", "double", "password", "binary",
    "path", "file-path", "directory-path", "json-string", "base64", "base64url",
))
# fmt: on
"""Formats that are a matter of storage or display (OpenAPI, pydantic), or stand beside `contentEncoding`."""

_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DAY = (
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
DATE = f"(?:{_YEAR}-{_DAY}|{_LEAP}-02-29)"
TIME_OF_DAY = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?"
TIME = f"{TIME_OF_DAY}(?:[zZ]|[+\\-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_TIME_SPAN = "T(?:#H(?:#M(?:#S)?)?|#M(?:#S)?|#S)"
_SPAN = f"(?:P(?:#W|{_TIME_SPAN}|(?:#Y(?:#M(?:#D)?)?|#M(?:#D)?|#D)(?:{_TIME_SPAN})?))"
_COUNT = "[0-9]" + "[0-9]?" * 5  # not {1,6}: counts within an expression are multiplied (`check_repeats`)
DURATION = _SPAN.replace("#", _COUNT)
"""RFC 3339's, of no more digits than Python's timedelta takes."""
DAYS_AND_TIME = f"(?:P(?:{_TIME_SPAN}|#D(?:{_TIME_SPAN})?))".replace("#", _COUNT)
"""What msgspec reads of it: how long a year or a month is depends on which."""
BASE64 = "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"
BASE64_URL = "(?:[A-Za-z0-9_\\-]{4})*(?:[A-Za-z0-9_\\-]{2}(?:==)?|[A-Za-z0-9_\\-]{3}=?)?"
# Without hyphens in a row: a label with two in its third and fourth place is punycode, which has rules of its own. As a
# whole it is as short as a label, so that no label is too long.
_LABEL = "[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*"
HOSTNAME = f"{_LABEL}(?:\\.{_LABEL})*"
HOSTNAME_CHARS = 63
FORMATS = {
    "hostname": HOSTNAME,
    "date": DATE,
    "time": TIME,
    "date-time": f"{DATE}[tT]{TIME}",
    "duration": DURATION,
    "decimal": "-?[0-9]{1,16}(?:\\.[0-9]{1,16})?",
    "byte": BASE64,
}
SPACE = r"\t-\r \xA0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000\uFEFF"
ENCODINGS = {"base64": BASE64, "base64url": BASE64_URL}

Schema = dict[str, Any]


def plain(schema: Mapping[str, Any], depth: int = MOST_LEVELS) -> Schema:
    """Return `schema` and all in it in the dialect that is compiled; raises InputError for one without end."""
    if not depth:
        raise InputError(f"the schema nests deeper than {MOST_LEVELS} levels")

    def inner(part: Any) -> Any:
        return plain(cast(Schema, part), depth - 1) if isinstance(part, Mapping) else part

    made = dict(schema)
    _tuples(made)
    for name in ("properties", "patternProperties", "$defs", "definitions"):
        if isinstance(made.get(name), dict):
            made[name] = {key: inner(part) for key, part in made[name].items()}
    for name in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if isinstance(made.get(name), list):
            made[name] = [inner(part) for part in made[name]]
    for name in ("items", "additionalProperties"):
        if name in made:
            made[name] = inner(made[name])
    for rewrite in (_nullable, _unique, _property_names, _numbers, _encoding, _spaces, _format):
        rewrite(made)
    return made


def _tuples(schema: Schema) -> None:
    """Draft 7's tuple: a list of `items`, and `additionalItems` for the rest. One that does not say is closed."""
    if isinstance(schema.get("items"), list) and "prefixItems" not in schema:
        schema["prefixItems"] = schema.pop("items")
        schema["items"] = schema.pop("additionalItems", False)
    elif "additionalItems" in schema and not isinstance(schema.get("items"), list):
        del schema["additionalItems"]


def _nullable(schema: Schema) -> None:
    """OpenAPI 3.0: a type that may be null as well. Without a type, or beside values, it says nothing."""
    if not isinstance(schema.get("nullable"), bool):
        return
    is_nullable, kinds = schema.pop("nullable"), schema.get("type")
    if is_nullable and kinds and "enum" not in schema and "const" not in schema:
        kinds = cast(list[Any], kinds) if isinstance(kinds, list) else [kinds]
        schema["type"] = kinds if "null" in kinds else [*kinds, "null"]


def _unique(schema: Schema) -> None:
    if schema.get("uniqueItems") is False:
        del schema["uniqueItems"]


def _property_names(schema: Schema) -> None:
    names = schema.get("propertyNames")
    if names is True:
        names = {}
    if (
        not isinstance(names, dict)
        or not names.keys() <= {"type", "pattern"}
        or names.get("type", "string") != "string"
    ):
        return
    pattern = cast(Schema, names).get("pattern")
    if pattern is None:
        del schema["propertyNames"]
    elif "properties" not in schema and "patternProperties" not in schema:
        del schema["propertyNames"]
        schema["patternProperties"] = {pattern: schema.get("additionalProperties", True)}
        schema["additionalProperties"] = False


def _numbers(schema: Schema) -> None:
    """A limit that lies beyond what is exact is drawn in to it: u64's largest number stands in many schemas."""
    for most, least, sign in (("maximum", "exclusiveMaximum", 1), ("minimum", "exclusiveMinimum", -1)):
        for name in (most, least):
            limit = schema.get(name)
            if isinstance(limit, int | float) and not isinstance(limit, bool) and sign * limit > EXACT:
                del schema[name]
                schema.setdefault(most, sign * EXACT)


def _encoding(schema: Schema) -> None:
    encoding = schema.get("contentEncoding")
    if isinstance(encoding, str):
        del schema["contentEncoding"]
        if encoding in ENCODINGS:
            _spell(schema, ENCODINGS[encoding])


def _spaces(schema: Schema) -> None:
    """ECMA-262's space has U+FEFF and not U+0085; the compiler's the other way round."""
    pattern = schema.get("pattern")
    if isinstance(pattern, str) and re.search(r"\\[sS]", pattern):
        schema["pattern"] = "".join(_spaced(pattern))


def _spaced(pattern: str) -> Iterator[str]:
    is_within = False
    for piece in re.findall(r"\\.|[^\\]|\\$", pattern, re.DOTALL):
        if piece == "\\S" and is_within:
            raise InputError(f"the schema's pattern {pattern[:60]!r} has \\S within brackets; name the characters")
        is_within = piece == "[" or (is_within and piece != "]")
        yield {"\\s": SPACE if is_within else f"[{SPACE}]", "\\S": f"[^{SPACE}]"}.get(piece, piece)


def _format(schema: Schema) -> None:
    name = schema.get("format")
    if not isinstance(name, str):
        return
    if name in FORMATS:
        del schema["format"]
        _spell(schema, FORMATS[name])
        if name == "hostname":
            schema["maxLength"] = min(schema.get("maxLength", HOSTNAME_CHARS), HOSTNAME_CHARS)
    elif name in SILENT_FORMATS or (name not in COMPILED_FORMATS and "pattern" in schema):
        del schema["format"]


def _spell(schema: Schema, pattern: str) -> None:
    """Hold a text to `pattern` too."""
    spelt = f"^(?:{pattern})$"
    if "pattern" in schema:
        schema["allOf"] = [*schema.get("allOf", []), {"pattern": spelt}]
    else:
        schema["pattern"] = spelt
