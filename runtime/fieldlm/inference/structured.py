"""Structured output in Python: a type or a JSON schema in, a constraint and an object of that type out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import msgspec
from msgspec import inspect

from fieldlm.core.errors import EngineError, InputError
from fieldlm.engines import Chunk, Engine, Outcome
from fieldlm.engines.rules.grammars import grammars
from fieldlm.engines.rules.rule import Rule
from fieldlm.engines.rules.schema_dialects import DATE, DAYS_AND_TIME, TIME_OF_DAY

if TYPE_CHECKING:
    from fieldlm.engines.constraint import CompiledRule


WITHOUT_ZONE = {"date-time": f"^{DATE}T{TIME_OF_DAY}$", "time": f"^{TIME_OF_DAY}$"}


class IncompleteError(EngineError):
    """An answer did not become whole. `outcome` says why, `text` holds what there was of it."""

    def __init__(self, outcome: Outcome, text: str, error: str | None = None) -> None:
        why = {"length": "it did not end within max_tokens"}.get(outcome, outcome)
        super().__init__(f"the answer is not whole: {error or why}")
        self.outcome = outcome
        self.text = text


@dataclass(frozen=True)
class Form:
    """What an answer has to be."""

    constraint: "CompiledRule"
    decode: Callable[[str], Any]

    def read(self, chunks: list[Chunk]) -> Any:
        """Return the object that `chunks` spell; raises IncompleteError when they are not a whole answer."""
        text, last = "".join(chunk.text for chunk in chunks), chunks[-1]
        if last.outcome != "stop" or not self.constraint.accepts(text):
            raise IncompleteError(last.outcome or "error", text, last.error)
        try:
            return self.decode(text)
        except (ValueError, TypeError) as error:
            # What the type checks and its schema does not say: a validator of its own.
            raise IncompleteError("error", text, f"{text!r} is refused by its type: {error}") from error


def form(engine: Engine, kind: Any, fallback: Any = None) -> Form:
    """Compile `kind`: a JSON schema, a pydantic model, or any type of msgspec (Struct, dataclass, TypedDict, …).

    Raises InputError for what has no schema, or one that cannot be honoured, and for a `fallback`, what its caller gets
    in an answer's place, of another type. A schema has none: what stands in for its answers may be anything.
    """
    schema, decode, is_of = _schema(kind)
    if fallback is not None and not is_of(fallback):
        wanted = kind.__name__ if isinstance(kind, type) else str(kind)
        raise InputError(f"fallback is {str(fallback)[:60]!r} ({type(fallback).__name__}), want an object of {wanted}")
    rule = Rule("json_schema", msgspec.json.encode(schema).decode())
    return Form(grammars(engine).compile(rule), decode)


def _schema(kind: Any) -> tuple[Any, Callable[[str], Any], Callable[[Any], bool]]:
    if isinstance(kind, Mapping):
        return cast(Mapping[str, Any], kind), msgspec.json.decode, lambda given: True
    if hasattr(kind, "model_json_schema"):
        schema = _without_sets(kind.model_json_schema())
        return schema, kind.model_validate_json, lambda given: isinstance(given, kind)
    try:
        schema, info = msgspec.json.schema(kind), inspect.type_info(kind)
        _say_times(info, schema, schema.get("$defs", {}), set())
        return _without_sets(schema), msgspec.json.Decoder(kind).decode, lambda it: _is_of(it, kind)
    except TypeError as error:
        raise InputError(f"{kind!r} has no JSON schema: {str(error).splitlines()[0]}") from error


def _say_times(info: inspect.Type, schema: dict[str, Any], defined: Mapping[str, Any], seen: set[str]) -> None:
    """Write into msgspec's `schema` what its decoder asks of times: of one without `tz` it says no more than a text."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name in seen:
            return
        seen.add(name)
        schema = defined[name]
    match info:
        case inspect.DateTimeType(tz=tz) | inspect.TimeType(tz=tz):
            name = "date-time" if isinstance(info, inspect.DateTimeType) else "time"
            schema |= {"pattern": WITHOUT_ZONE[name]} if tz is False else {"format": name}
        case inspect.TimeDeltaType():
            del schema["format"]
            schema["pattern"] = f"^{DAYS_AND_TIME}$"
        case inspect.UnionType(types=types) if "anyOf" in schema:
            for one, part in zip(types, schema["anyOf"], strict=False):
                _say_times(one, part, defined, seen)
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item) if "items" in schema:
            _say_times(item, schema["items"], defined, seen)
        case inspect.DictType(value_type=value) if "additionalProperties" in schema:
            _say_times(value, schema["additionalProperties"], defined, seen)
        case (
            inspect.StructType(fields=fields)
            | inspect.DataclassType(fields=fields)
            | inspect.TypedDictType(fields=fields)
        ):
            for field in fields:
                if field.encode_name in schema.get("properties", {}):
                    _say_times(field.type, schema["properties"][field.encode_name], defined, seen)
        case _:
            pass


def _is_of(given: Any, kind: Any) -> bool:
    """Whether `given` is of the type already: what could be made into it, a dict into a Struct, is not."""
    try:
        return bool(msgspec.convert(given, kind) == given)
    except (msgspec.ValidationError, TypeError):
        return False


def _without_sets(schema: Any) -> Any:
    """Return a type's schema without `uniqueItems`: who reads the answer into a set takes what comes twice once."""
    if isinstance(schema, list):
        return [_without_sets(item) for item in cast(list[Any], schema)]
    if not isinstance(schema, dict):
        return schema
    items = cast(dict[str, Any], schema).items()
    return {name: _without_sets(item) for name, item in items if not (name == "uniqueItems" and item is True)}
