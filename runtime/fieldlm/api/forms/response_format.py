"""`response_format`: JSON, or JSON that a schema describes."""

from typing import Any, Literal

import msgspec

from fieldlm.engines.rules.rule import Rule
from fieldlm.network.json_api import ApiError


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


def rule_of(kind: Literal["json_object", "json_schema"], schema: dict[str, Any] | None, name: str) -> Rule:
    """Return the rule for JSON; raises ApiError when the schema that `name` has to hold is missing."""
    if kind == "json_schema" and schema is None:
        raise ApiError(400, f"{name} is missing", param=name, code="missing_required_parameter")
    return Rule("json_object") if schema is None else Rule("json_schema", msgspec.json.encode(schema).decode())
