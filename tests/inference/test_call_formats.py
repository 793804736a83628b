"""A forced call is spelt as its model spells calls, and whatever its grammar lets be written is read as calls."""

import json
import random
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import jsonschema
import numpy as np
import pytest

from fieldlm.core.errors import EngineError
from fieldlm.engines import Engine, SpecialTokens
from fieldlm.engines.constraint import Grammars, Rule
from fieldlm.engines.rules.json_schema import checked
from fieldlm.inference.call_formats import HERMES, TOKENS, CallFormat, format_of, said_tokens
from fieldlm.inference.call_grammar import CallGrammar, UnspeakableError
from fieldlm.inference.chat_template import ChatTemplate
from fieldlm.inference.tool_calls import Call, CallReader
from tests.inference.test_call_spellings import SPELLINGS, said
from tests.support.depth import SEED, scaled
from tests.support.schema_samples import ByteEngine

TEMPLATES: dict[str, dict[str, str]] = tomllib.loads(
    (Path(__file__).parents[1] / "fixtures" / "call_templates.toml").read_text()
)
BEGINS = "{% if tools %}[system]TOOLS{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
GO, STOP = ("go", {"to": "lift"}), ("stop", cast(dict[str, str], {}))
TEXT = {"type": "string"}
SCHEMAS: dict[str, dict[str, Any]] = {
    "go": {
        "type": "object",
        "properties": {
            "to": TEXT,
            "n": {"type": "integer"},
            "x": {"type": "number", "minimum": 0},
            "on": {"type": "boolean", "description": "whether"},
            "kind": {"enum": ["a", "b b", "c\"<'"]},
            "maybe": {"anyOf": [TEXT, {"type": "null"}]},
            "none": {"type": ["string", "null"]},
            "list": {"type": "array", "items": TEXT},
            "short": {"type": "string", "minLength": 1, "maxLength": 5},
            "shaped": {"type": "string", "pattern": "^[a-z]{2,4}$"},
            "day": {"type": "string", "format": "date"},
        },
        "required": ["n", "on"],
    },
    "stop": {"type": "object", "properties": {}},
    "nest": {
        "type": "object",
        "properties": {
            "o": {"type": "object", "properties": {"a": {"type": "integer"}, "b": TEXT}, "required": ["a"]},
            "l": {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 3},
        },
        "required": ["o"],
    },
    "any": {"type": "object", "properties": {"mail": {"type": "string", "format": "email"}}, "required": ["mail"]},
}
ASKED = (["go", "stop"], ["go"], ["nest"], ["stop"], ["any", "nest"])
WALKS = scaled(2, most=100)
MOST_BYTES = 8000


class MarkedBytes(ByteEngine):
    """Bytes, and the marks of calls as control tokens."""

    def vocabulary(self) -> Sequence[bytes]:
        return [*super().vocabulary(), *(b"" for _ in TOKENS)]

    def tokenize(self, text: str) -> list[int]:
        tokens: list[int] = []
        while text:
            mark = next((mark for mark in TOKENS if text.startswith(mark)), "")
            tokens += [257 + TOKENS.index(mark)] if mark else text[0].encode()
            text = text[len(mark) or 1 :]
        return tokens

    def detokenize(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if token < 256).decode(errors="replace")


class PlainBytes(MarkedBytes):
    """Bytes alone: every mark is a text."""

    tokenize = ByteEngine.tokenize


ENGINES: dict[str, Engine] = {"tokens": cast(Engine, MarkedBytes()), "texts": cast(Engine, PlainBytes())}
GRAMMARS = {name: Grammars(engine) for name, engine in ENGINES.items()}


def template(name: str) -> ChatTemplate:
    parts = TEMPLATES[name]
    source = BEGINS.replace("TOOLS", parts.get("tools", "{{ tools }}")) + parts.get("calls", "")
    return ChatTemplate(source + "<|im_end|>{% endfor %}", SpecialTokens(eos="<|im_end|>"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_call_is_spelt_as_the_models_own_template_does(name: str) -> None:
    found, parts = format_of(template(name), ["<|im_end|>"]), TEMPLATES[name]
    assert found.spelt([GO]) == said(SPELLINGS[parts["one"]])
    if "two" in parts:
        assert found.spelt([GO, STOP]) == said(SPELLINGS[parts["two"]])


def rule_of(format: CallFormat, engine: str, names: Sequence[str]) -> Rule:
    """Return the rule of calls, in JSON where the spelling cannot say what is asked for, as the API has it."""
    tokens = said_tokens(ENGINES[engine])
    for spelling in (format, HERMES):
        calls = CallGrammar(spelling, tokens, ENGINES[engine].stop_tokens)
        try:
            text = calls.rules({name: checked(SCHEMAS[name]) for name in names}, several=True)
        except UnspeakableError:
            continue
        return Rule("grammar", f"start: calls\n{text}", json_after="", texts=tuple(calls.texts), said=tokens)
    raise AssertionError("JSON says it all")


def written(rule: Rule, engine: str, chance: random.Random) -> str | None:
    """Return an answer at random that `rule` lets be written; None where it has no end soon."""
    guide = GRAMMARS[engine].compile(rule).guide()
    spoken = {token: text.encode() for token, text in rule.said}
    flat = np.zeros(len(ENGINES[engine].vocabulary()), np.float32)
    ends = [ENGINES[engine].tokenize(end) for _, end in rule.texts]
    text, ahead = b"", list[int]()
    while len(text) < MOST_BYTES and not guide.is_complete:
        forced = list(guide.forced())
        if not forced:
            allowed = np.flatnonzero(np.isfinite(guide.allow(flat))).tolist()
            if 256 in allowed and (allowed == [256] or chance.random() < 0.5):
                return text.decode(errors="replace")
            allowed = [token for token in allowed if token != 256]
            if len(allowed) > 60 and ends and not ahead and chance.random() < 0.2:
                ahead = list(chance.choice(ends))
            closing = [token for token in allowed if token > 256 or token in b'"}])\n,']
            plain = [token for token in allowed if token < 128] or allowed
            forced = [chance.choice(closing if closing and chance.random() < 0.4 else plain)]
            ahead = ahead if ahead and ahead[0] in allowed else []
            forced = [ahead.pop(0)] if ahead else forced
        for token in forced:
            guide.accept(token)
            text += spoken.get(token) or bytes([token])
    return text.decode(errors="replace") if guide.is_complete else None


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_grammar_of_calls_lets_be_written_is_read_as_calls_that_are_valid(name: str, engine: str) -> None:
    found, ended = format_of(template(name), ["<|im_end|>"]), 0
    for number, names in enumerate(ASKED * WALKS):
        text = written(rule_of(found, engine, names), engine, random.Random(f"{SEED} {number}"))
        # JSON lets a number be written that no double holds, 1e999; the reader takes it for no call.
        if text is None or re.search(r"\d[eE]\+?\d{3}", text):
            continue
        ended += 1
        reader = CallReader(frozenset(SCHEMAS), schemas=SCHEMAS)
        pieces = [piece for character in text for piece in reader.push(character)] + reader.finish()
        calls = [piece for piece in pieces if isinstance(piece, Call)]
        assert calls, text
        assert not "".join(piece for piece in pieces if isinstance(piece, str)).strip(), text
        for call in calls:
            jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
    assert ended > len(ASKED * WALKS) // 3


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_models_own_words_are_what_its_grammar_accepts(name: str, engine: str) -> None:
    found = format_of(template(name), ["<|im_end|>"])
    calls = CallGrammar(found, said_tokens(ENGINES[engine]), frozenset({256}))
    text = calls.rules({"go": {"type": "object", "properties": {"to": TEXT}, "required": ["to"]}}, several=False)
    guide = GRAMMARS[engine].compile(Rule("grammar", f"start: calls\n{text}")).guide()
    for token in ENGINES[engine].tokenize(found.spelt([GO])):
        guide.accept(token)
    assert guide.is_complete


@pytest.mark.parametrize("name", ["minicpm5", "qwen3_coder", "glm47"])
def test_a_text_never_loses_the_line_breaks_around_it(name: str) -> None:
    """A reader takes one on each side for the spelling's own, so where a spelling has none a text has none there."""
    found = format_of(template(name), ["<|im_end|>"])
    schema = checked({"type": "object", "properties": {"to": TEXT | {"minLength": 1}}, "required": ["to"]})
    calls = CallGrammar(found, said_tokens(ENGINES["texts"]), frozenset({256}))
    compiled = GRAMMARS["texts"].compile(Rule("grammar", f"start: calls\n{calls.rules({'go': schema}, several=False)}"))
    read: list[str] = []
    for text in ("a", "a\nb", "\n", "\na", "a\n", "\n\n"):
        guide, spelt = compiled.guide(), found.spelt([("go", {"to": text})])
        try:
            for token in spelt.encode():
                guide.accept(token)
        except EngineError:
            continue
        (call,) = CallReader(frozenset({"go"}), schemas={"go": schema}).push(spelt)
        assert isinstance(call, Call)
        assert json.loads(call.arguments) == {"to": text}
        read.append(text)
    assert read[:2] == ["a", "a\nb"]
    assert len(read) == (6 if name == "qwen3_coder" else 2)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": TEXT}},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "^a|b$"}}},
        {"type": "object", "properties": {"a": {"type": "string", "format": "email"}}},
        {"type": "object", "properties": {"a": {"enum": ["</parameter>"]}}},
        {"type": "object", "properties": {"a b": TEXT}},
        {"type": "object", "properties": {"a": {"type": ["string", "integer"]}}},
    ],
)
def test_what_a_spelling_cannot_say_stands_as_json_in_its_place(schema: dict[str, Any]) -> None:
    xml = CallGrammar(format_of(template("qwen3_coder"), ["<|im_end|>"]))
    assert "%json" in xml.rules({"go": schema}, several=False)
    assert not xml.texts
    gemma = CallGrammar(format_of(template("function_gemma"), ["<|im_end|>"]))
    if schema != {"type": "object", "properties": {"a": {"type": ["string", "integer"]}}} and "enum" not in str(schema):
        with pytest.raises(UnspeakableError):
            gemma.rules({"go": schema}, several=False)


@pytest.mark.parametrize(("name", "key"), [("go", "from"), ("go", "a-b"), ("class", "a")])
def test_what_python_would_not_read_is_not_said_in_python(name: str, key: str) -> None:
    calls = CallGrammar(format_of(template("lfm2"), ["<|im_end|>"]))
    with pytest.raises(UnspeakableError):
        calls.rules({name: {"type": "object", "properties": {key: TEXT}}}, several=False)
