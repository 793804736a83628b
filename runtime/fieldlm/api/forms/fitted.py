"""An answer that no grammar has held, the large model's or a classifier's, made to fit what was asked for."""

import json
import re
from collections.abc import Sequence
from typing import Any, cast

from fieldlm.api.chat_request import CompletionParams
from fieldlm.api.output_contract import JSON_KINDS, OutputContract
from fieldlm.api.tools import Toolbox
from fieldlm.inference.tool_calls import spelt

_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)


class MisfitError(Exception):
    """An answer that is not what was asked for; the message goes on from who gave it."""


def fitted(
    said: str,
    calls: Sequence[tuple[str, str]],
    contract: OutputContract,
    toolbox: Toolbox | None,
    asked: CompletionParams,
    *,
    is_cut: bool = False,
) -> str:
    """Return an answer as the model would have spelt it: JSON with its keys in the schema's order, calls as text.

    `calls` are names with the JSON of their arguments. One that `is_cut` by its length is held to no form. Raises
    MisfitError.
    """
    if calls and toolbox is None:
        raise MisfitError("called a tool, and there is none")
    schemas = {tool.function.name: tool.function.schema for tool in toolbox.tools} if toolbox else {}
    parts: list[str] = []
    for name, arguments in calls:
        if name not in schemas:
            raise MisfitError("called a tool that there is not")
        parts.append(spelt(name, _arguments(arguments, schemas[name])))
    texts = [said]
    if contract.rule is not None and not calls:
        texts = [said, *_spellings(said, asked)]
    elif contract.rule is not None:
        texts = [""]  # what is said beside a call has no place in the form
    for text in texts:
        whole = text + "\n".join(parts)
        if contract.rule is None or is_cut or contract.accepts(whole):
            return whole
    raise MisfitError("did not answer in the form that was asked for")


def _spellings(text: str, asked: CompletionParams) -> list[str]:
    """Return other ways to write the same answer: without a fence around it, JSON with its keys in order."""
    fence = _FENCE.match(text)
    plain = (fence[1] if fence else text).strip()
    found = [plain]
    for rule in asked.rules().values():
        if rule.kind not in JSON_KINDS:
            continue
        try:
            value = json.loads(plain)
        except (ValueError, RecursionError):
            continue
        schema = json.loads(rule.text) if rule.kind == "json_schema" else {}
        for ordered in (value, _ordered(value, schema, schema)):
            found += [json.dumps(ordered, ensure_ascii=False), json.dumps(ordered, ensure_ascii=False, indent=2)]
    return found


def _arguments(text: str, schema: dict[str, Any]) -> Any:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise MisfitError("called a tool with arguments that are no JSON") from error
    if not isinstance(value, dict):
        raise MisfitError("called a tool with arguments that are no object")
    return _ordered(value, schema, schema)


def _ordered(value: Any, schema: Any, root: dict[str, Any]) -> Any:
    """Return `value` with its keys in the order in which `schema` names them, which is the order of the small model's.

    JSON has no order of keys (RFC 8259 §4); a grammar has one.
    """
    described = cast(dict[str, Any], schema) if isinstance(schema, dict) else {}
    reference = described.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/"):
        target: Any = root
        for part in reference[2:].split("/"):
            target = cast(dict[str, Any], target).get(part, {}) if isinstance(target, dict) else {}
        return _ordered(value, target, root) if target is not schema else value
    if isinstance(value, list):
        return [_ordered(item, described.get("items"), root) for item in cast(list[Any], value)]
    if not isinstance(value, dict):
        return value
    items = cast(dict[str, Any], value)
    properties = cast(dict[str, Any], described.get("properties") or {})
    keys = [key for key in properties if key in items] + [key for key in items if key not in properties]
    return {key: _ordered(items[key], properties.get(key), root) for key in keys}
