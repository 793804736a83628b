"""The grammar of calls that must come, in a model's own spelling, with arguments held to their schemas.

Arguments that are JSON are held by the schema itself. In the other spellings each argument is written for itself: texts
as they are, numbers, lists and objects as JSON, in Python's or Gemma's way where they have one. What a spelling cannot
say of a schema exactly (an open object, a text with a pattern behind other keywords, a name that Python would not read)
raises `UnspeakableError`, and its caller has JSON instead.
"""

import json
import keyword
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from fieldlm.inference.call_formats import JSON, ArgumentStyle, CallFormat

Schema = Mapping[str, Any]

_SLASH = re.compile(r"(?<!\\)((?:\\\\)*)/")  # one that no backslash escapes
_ANYTHING_BUT = "/(.|\\n)*/ & ~/(.|\\n)*({})(.|\\n)*/"
_UNFRAMED = r"/([^\n]((.|\n)*[^\n])?)?/"  # neither begun nor ended by a line break
_TEXT_WORDS = frozenset({"type", "minLength", "maxLength", "pattern"})
_SILENT = frozenset({"title", "description", "default", "example", "examples", "deprecated", "$comment"})
_OBJECT_WORDS = frozenset({"type", "properties", "required", "additionalProperties", "$schema", "$id", "strict"})
MOST_LENGTH = 2000  # characters of a text that its grammar counts


class UnspeakableError(Exception):
    """A schema that a spelling cannot say exactly."""


class CallGrammar:
    """The rules of one request's calls; `said` are the control tokens that are said as texts."""

    def __init__(self, format: CallFormat, said: Sequence[tuple[int, str]] = (), stops: frozenset[int] = frozenset()):
        self.format = format
        self._ids = {text: token for token, text in said}
        self._stops = stops
        self._rules: list[str] = []
        self.texts: list[tuple[str, str]] = []
        """What stands before and behind texts that are written as they are."""
        self._mark = re.compile("|".join(map(re.escape, sorted(self._ids, key=len, reverse=True)))) if said else None

    def rules(self, calls: Mapping[str, Schema], *, several: bool) -> str:
        """Return the rule `calls` of a row of calls, and those that it needs; `calls` holds the schemas by name.

        Raises UnspeakableError.
        """
        self._rules, spelt = [], self.format
        for i, (name, schema) in enumerate(calls.items()):
            parts = [self.literal(name + spelt.after_name), self._arguments(spelt.style, name, schema)]
            self._rules.append(f"call_{i}: {' '.join(filter(None, parts))}")
        row = "call"
        if several and spelt.between is not None:
            row += f" ({self.literal(spelt.between)} call)*"
        whole = " ".join(filter(None, (self.literal(spelt.opens), row, self.literal(spelt.closes, is_last=True))))
        choice = " | ".join(f"call_{i}" for i in range(len(calls)))
        return "\n".join([f"calls: {whole}", f"call: {choice}", *self._rules])

    def literal(self, text: str, *, is_last: bool = False) -> str:
        """Return `text` as the grammar writes it, control tokens by their ids; a last one that ends answers is left."""
        parts: list[str] = []
        at = 0
        for mark in self._mark.finditer(text) if self._mark else ():
            parts += [_quoted(text[at : mark.start()])] if mark.start() > at else []
            at, token = mark.end(), self._ids[mark[0]]
            if not (is_last and token in self._stops):
                parts.append(f"<[{token}]>")
        return " ".join([*parts, *([_quoted(text[at:])] if at < len(text) else [])])

    def _arguments(self, style: ArgumentStyle, name: str, schema: Schema) -> str:
        if style is JSON:
            return json_rule(schema)
        if style.name == "python" and not all(map(_is_word, name.replace("-", "_").split("."))):
            raise UnspeakableError(name)
        rules, texts = len(self._rules), len(self.texts)
        try:
            return self._listed(style, schema)
        except UnspeakableError:
            del self._rules[rules:], self.texts[texts:]
            # Where the name stands before, JSON in the place of parameters is read as well.
            if style.name in ("xml", "pairs"):
                return json_rule(schema)
            raise

    def _listed(self, style: ArgumentStyle, schema: Schema) -> str:
        """Return an object's properties one after the other, in the schema's order."""
        words = schema.keys() - _OBJECT_WORDS - _SILENT - {"$defs", "definitions"}
        properties = cast(Mapping[str, Any], schema.get("properties", {}))
        required = set(cast(list[str], schema.get("required", [])))
        if (
            words
            or required - properties.keys()
            or (not properties and schema.get("additionalProperties") is not False)
        ):
            raise UnspeakableError(str(words))
        if _refers(schema):
            raise UnspeakableError("$ref")
        parts = [self._part(style, key, part) for key, part in properties.items()]
        return _row(parts, [key in required for key in properties], style.between)

    def _part(self, style: ArgumentStyle, key: str, schema: Any) -> str:
        if not re.fullmatch(r"[\w.$-]+", key) or (style.name == "python" and not _is_word(key)):
            raise UnspeakableError(key)
        if not isinstance(schema, dict):
            raise UnspeakableError("true")
        part = style.part
        if 'string="true"' in part and not _is_text(cast(Schema, schema)):
            part = part.replace('string="true"', 'string="false"')
        before, _, after = part.replace("KEY", key).partition("VALUE")
        said = _spoken(cast(Schema, schema))
        if style.name in ("xml", "pairs") and (text := _text_of(said)) is not None:
            self.texts.append((before, after))
            is_framed = before.endswith("\n") and after.startswith("\n")
            return f"{self.literal(before)} {self._text(style, text, after, may_break=is_framed)}"
        return " ".join(filter(None, (self.literal(before), self._value(style, said), self.literal(after))))

    def _value(self, style: ArgumentStyle, schema: Schema) -> str:
        said = _spoken(schema)
        choices = [said["const"]] if "const" in said else said.get("enum")
        if isinstance(choices, list):
            return self._either([self._constant(style, value) for value in cast(list[Any], choices)])
        kinds = said.get("type")
        if set(said) == {"anyOf"} or (set(said) == {"type"} and isinstance(kinds, list)):
            parts = _alternatives(said["anyOf"] if "anyOf" in said else _by_type(kinds))
            return self._either([self._value(style, part) for part in parts])
        return self._of_kind(style, kinds, said)

    def _of_kind(self, style: ArgumentStyle, kind: Any, said: dict[str, Any]) -> str:
        match style.name, kind:
            case "python", "boolean":
                rule = '("True" | "False")'
            case "python", "null":
                rule = '"None"'
            case "gemma", "string":
                self.texts.append((style.quote, style.quote))
                rule = f"{self.literal(style.quote)} {self._text(style, said, style.quote)}"
            case "gemma", "array":
                rule = self._gemma_list(style, said)
            case "gemma", "object":
                rule = f'"{{" {self._listed(style, said)} "}}"'
            case "xml" | "pairs", "array" | "object":
                rule = json_rule(_guarded(said))
            case _, str():
                rule = json_rule(said)
            case _:
                raise UnspeakableError(str(said))
        return rule

    def _constant(self, style: ArgumentStyle, value: Any) -> str:
        if isinstance(value, str) and style.name != "python":
            if any(mark in value for mark in style.never) or (style.name != "gemma" and value != value.strip("\n")):
                raise UnspeakableError(value)
            quote = self.literal(style.quote) if style.quote else ""
            return " ".join(filter(None, (quote, _quoted(value) if value else "", quote))) or '""'
        if isinstance(value, dict | list):
            raise UnspeakableError("a value of several")
        if style.name == "python" and (value is None or isinstance(value, bool)):
            return _quoted(str(value))
        return _quoted(json.dumps(value, ensure_ascii=False))

    def _text(self, style: ArgumentStyle, schema: Schema, after: str, *, may_break: bool = True) -> str:
        """Return a rule for a text as it is, which nobody may take for its own end, and what follows it.

        Unless it `may_break`, no line break begins or ends it: a reader would take that for the spelling's own.
        """
        if not schema.keys() <= _TEXT_WORDS:
            raise UnspeakableError(str(schema))
        rule = _ANYTHING_BUT.format("|".join(_slashed(re.escape(mark)) for mark in style.never))
        if not may_break:
            rule += f" & {_UNFRAMED}"
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if least or most is not None:
            if max(least, most or 0) > MOST_LENGTH:
                raise UnspeakableError("length")
            rule += f" & /(.|\\n){{{least},{'' if most is None else most}}}/"
        if "pattern" in schema:
            rule += f" & /{_slashed(_whole(str(schema['pattern'])))}/"
        text, end = f"TEXT_{len(self._rules)}", self.literal(after)
        self._rules.append(f"{text}: {rule}")
        if "<[" in end:
            return f"{text} {end}"
        self._rules.append(f"{text}_END: {text} {end}")
        # Lazy: it ends where it first can.
        self._rules.append(f"{text.lower()}_end[lazy]: {text}_END")
        return f"{text.lower()}_end"

    def _gemma_list(self, style: ArgumentStyle, schema: Schema) -> str:
        items = schema.get("items")
        if not isinstance(items, dict) or not schema.keys() <= {"type", "items", "minItems", "maxItems"}:
            raise UnspeakableError("a list")
        item = self._named(self._value(style, cast(Schema, items)))
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return '"[" "]"'
        more = f'("," {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
        return f'"[" {item} {more} "]"' if least else f'"[" ({item} {more})? "]"'

    def _either(self, parts: Sequence[str]) -> str:
        return parts[0] if len(parts) == 1 else self._named(" | ".join(parts))

    def _named(self, body: str) -> str:
        name = f"value_{len(self._rules)}"
        self._rules.append(f"{name}: {body}")
        return name


def json_rule(schema: Schema) -> str:
    """Return `schema` as a grammar takes it, on one line as `json.dumps` writes."""
    style = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False, "lenient": False}
    return f"%json {json.dumps({**schema, 'x-guidance': style})}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _row(parts: Sequence[str], must: Sequence[bool], between: str) -> str:
    """Return the parts in their order, those that must not come left out or not, with `between` where two meet."""
    if not between:
        return " ".join(part if needed else f"({part})?" for part, needed in zip(parts, must, strict=True))
    comma = _quoted(between)
    if any(must):
        first = must.index(True)
        before = [f"({part} {comma})?" for part in parts[:first]]
        behind = [
            f"{comma} {part}" if needed else f"({comma} {part})?"
            for part, needed in zip(parts[first + 1 :], must[first + 1 :], strict=True)
        ]
        return " ".join([*before, parts[first], *behind])
    rows = [" ".join([part, *(f"({comma} {later})?" for later in parts[i + 1 :])]) for i, part in enumerate(parts)]
    return f"({' | '.join(rows)})?" if rows else ""


def _spoken(schema: Schema) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name not in _SILENT}


def _text_of(said: Schema) -> Schema | None:
    """Return what a text has to be where nothing stands around it; None for what is no text.

    null is the word for it there, which a reader takes for null if it may be.
    """
    if said.get("type") == "string" and "enum" not in said and "const" not in said:
        return said
    kinds = _by_type(said.get("type"))
    parts = kinds if set(said) == {"type"} else said["anyOf"] if set(said) == {"anyOf"} else None
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in cast(list[Any], parts)):
        return None
    plain = [_spoken(cast(Schema, part)) for part in cast(list[Any], parts)]
    if not any(map(_is_text, plain)):
        return None
    if any(part not in ({"type": "string"}, {"type": "null"}) for part in plain):
        raise UnspeakableError("a text or another thing")
    return {"type": "string"}


def _by_type(kinds: Any) -> list[Schema]:
    return [{"type": kind} for kind in cast(list[Any], kinds)] if isinstance(kinds, list) else []


def _alternatives(given: Any) -> list[Schema]:
    parts = [_spoken(cast(Schema, part)) for part in cast(list[Any], given) if isinstance(part, dict)]
    if len(parts) != len(given):
        raise UnspeakableError("anyOf")
    return cast(list[Schema], parts)


def _is_text(schema: Schema) -> bool:
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        return all(isinstance(value, str) for value in cast(list[Any], values))
    return schema.get("type") == "string"


def _whole(pattern: str) -> str:
    """Return a pattern, which is looked for anywhere in a text, as one of the whole text."""
    begins, ends = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
    inner = pattern[begins : len(pattern) - ends]
    outer, was = inner, ""
    while outer != was:
        was, outer = outer, re.sub(r"\([^()]*\)", "", outer)
    # What looks around itself, or says where it stands in a part of it alone.
    if re.search(r"(?<!\\)(?<!\[)[\^$]|\(\?[=!<]|\\[bB]", inner) or ((begins or ends) and "|" in outer):
        raise UnspeakableError(pattern)
    any_text = "(.|\\n)*"
    return f"{'' if begins else any_text}({inner}){'' if ends else any_text}"


def _slashed(expression: str) -> str:
    return _SLASH.sub(r"\1\/", expression)


def _guarded(schema: Any) -> Any:
    """Return a schema whose texts hold none of the marks that a reader would take for the end of the JSON around."""
    if isinstance(schema, list):
        return [_guarded(part) for part in cast(list[Any], schema)]
    if not isinstance(schema, dict):
        return schema
    said = {name: _guarded(part) for name, part in cast(dict[str, Any], schema).items()}
    if said.get("type") == "string" and not said.keys() & {"enum", "const", "pattern", "format"}:
        said["pattern"] = r"^(?:[^<]|<+[^<\/ap｜])*<*$"
    return said


def _refers(schema: Any) -> bool:
    if isinstance(schema, list):
        return any(map(_refers, cast(list[Any], schema)))
    if not isinstance(schema, dict):
        return False
    return "$ref" in schema or any(map(_refers, cast(dict[str, Any], schema).values()))


def _is_word(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name)
