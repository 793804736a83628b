"""The form of an answer: `response_format`, `regex` and `grammar`, and the names that other servers have for these."""

import re
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from fieldlm.engines.rules.rule import Kind, Rule
from fieldlm.network.json_api import ApiError

Schema = dict[str, Any] | str
"""A schema, or the JSON of one."""
_VLLM = "structured_outputs"
_NOT_BUILT = ("structural_tag", "whitespace_pattern", "disable_additional_properties")
_SPECIAL = re.compile(r"([\\.+*?()|\[\]{}^$#&~-])")


class JsonSchema(msgspec.Struct, frozen=True):
    """A schema with a name. `strict` changes nothing: every schema is honoured."""

    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """What the answer has to look like; `schema` beside `json_object` is how llama.cpp's server spells a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | None = None


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """vLLM's: one form. JSON has no whitespace to spare here, with `disable_any_whitespace` or without."""

    json: Schema | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    structural_tag: Any = None
    whitespace_pattern: str | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    disable_fallback: bool | None = None

    def rules(self) -> dict[str, Rule]:
        """Return the form; raises ApiError where there is none, and for what changes one and is not built."""
        for name in _NOT_BUILT:
            if getattr(self, name):
                where = f"{_VLLM}.{name}"
                raise ApiError(400, f"{where}: not supported", param=where, code="unsupported_parameter")
        given = {name: getattr(self, name) for name in _RULES}
        found = {
            where: _RULES[name](value, where)
            for name, value in given.items()
            if _says(value, where := f"{_VLLM}.{name}")
        }
        if not found:
            what = f"{_VLLM} has no form; want one of {', '.join(_RULES)}"
            raise ApiError(400, what, param=_VLLM, code="invalid_value")
        return found


class FormParams(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer has to look like. Of these there may be several only where they say the same."""

    response_format: ResponseFormat | None = None
    # What OpenAI's API has no word for.
    regex: str | None = None
    grammar: str | None = None
    json_schema: Schema | None = None  # llama.cpp's
    structured_outputs: StructuredOutputs | None = None  # vLLM's
    guided_json: Schema | None = None  # vLLM's before, as the three that follow
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    ebnf: str | None = None  # SGLang's

    def rules(self) -> dict[str, Rule]:
        """Return what the answer has to look like, by the parameter that says so."""
        given = {name: getattr(self, name) for name in _NAMES}
        found = {name: _RULES[_NAMES[name]](value, name) for name, value in given.items() if _says(value, name)}
        if self.structured_outputs is not None:
            found |= self.structured_outputs.rules()
        format = self.response_format
        if format is None or format.type == "text":
            return found
        schema = format.json_schema.schema if format.json_schema else format.schema
        return {**found, "response_format": rule_of(format.type, schema, "response_format.json_schema.schema")}

    def refuse_several(self) -> None:
        """Raise ApiError where more than one form is asked for."""
        rules = self.rules()
        if len({*rules.values()}) > 1:
            names = ", ".join(rules)
            raise ApiError(400, f"{names}: an answer follows one form", param=names, code="invalid_value")


def rule_of(kind: Literal["json_object", "json_schema"], schema: dict[str, Any] | None, name: str) -> Rule:
    """Return the rule for JSON; raises ApiError when the schema that `name` has to hold is missing."""
    if kind == "json_schema" and schema is None:
        raise ApiError(400, f"{name} is missing", param=name, code="missing_required_parameter")
    return Rule("json_object") if schema is None else Rule("json_schema", msgspec.json.encode(schema).decode())


def _says(value: Any, name: str) -> bool:
    """Whether `value` of the parameter `name` asks for a form, if only for one that cannot be.

    To llama.cpp's server an empty `grammar` is none; `ebnf` is read as it is. An empty regex asks for an empty answer,
    an empty schema for any JSON.
    """
    return value is not None and value is not False and not (value == "" and name in ("grammar", "ebnf"))


def _text(kind: Kind) -> Callable[[str, str], Rule]:
    return lambda text, _: Rule(kind, text)


def _json(schema: Schema, name: str) -> Rule:
    if isinstance(schema, str):
        try:
            schema = msgspec.json.decode(schema, type=dict[str, Any])
        except (ValueError, RecursionError) as error:
            what = f"{name} is not the JSON of a schema: {error}"
            raise ApiError(400, what, param=name, code="invalid_value") from error
    return rule_of("json_schema", schema, name)


def _choice(choices: list[str], name: str) -> Rule:
    if not choices:
        what = f"{name} is empty, so no answer can be one of its texts; name some, or leave it out"
        raise ApiError(400, what, param=name, code="invalid_value")
    return Rule("regex", "|".join(_SPECIAL.sub(r"\\\1", choice) for choice in choices))


_RULES: dict[str, Callable[[Any, str], Rule]] = {
    "json": _json,
    "json_object": lambda _, __: Rule("json_object"),
    "regex": _text("regex"),
    "grammar": _text("grammar"),
    "choice": _choice,
}
_NAMES = {
    "regex": "regex",
    "grammar": "grammar",
    "json_schema": "json",
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "ebnf": "grammar",
}
"""Parameters by what they hold."""
