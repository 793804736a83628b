"""Structured output: what an answer has to be (schema, tools, fallback), compiled and checked before it is computed."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from fieldlm.api.chat_request import CompletionParams
from fieldlm.api.tools import Toolbox
from fieldlm.core.errors import InputError
from fieldlm.engines import Engine, Outcome
from fieldlm.engines.rules.grammars import grammars
from fieldlm.engines.rules.rule import NotCompiledError, Rule
from fieldlm.inference.call_formats import call_format, said_tokens
from fieldlm.inference.chat_template import said_marks, thought_marks
from fieldlm.inference.generations import Serving
from fieldlm.inference.thoughts.marks import ThoughtMarks
from fieldlm.network.json_api import ApiError

if TYPE_CHECKING:
    from fieldlm.engines.constraint import CompiledRule

JSON_KINDS = ("json_schema", "json_object")
FORM_S = 30.0
"""How long a request waits for its form to be compiled; those in sensible use take milliseconds."""
RETRY_AFTER_S = 10


@dataclass(frozen=True, kw_only=True)
class OutputContract:
    """What the answer to a request has to be."""

    rule: "CompiledRule | None" = None
    toolbox: Toolbox | None = None
    is_formed: bool = False
    """Whether what is no call has a form: JSON there is an answer, and no call that nobody marked."""
    fallback: str | None = None
    vocabulary: Sequence[bytes] | None = None
    """Given when the request asks how likely the tokens were."""
    said: tuple[tuple[int, str], ...] = ()
    """Control tokens of calls, which are said as texts: a reader knows calls by them."""
    thoughts: ThoughtMarks | None = None
    """What the model thinks between before it answers."""
    as_json: "Callable[[], CompiledRule] | None" = None
    """Makes the rule of an answer whose calls are in JSON, as a large model's are; None where `rule` is that."""

    def accepts(self, text: str) -> bool:
        """Whether `text`, with any calls spelt in JSON, is an answer; any is where there is no rule."""
        rule = self.rule if self.as_json is None else self.as_json()
        return rule is None or rule.accepts(text)

    def uses_fallback(self, text: str, outcome: Outcome | None) -> bool:
        """Whether the canned answer has to stand in."""
        if self.fallback is None or outcome == "cancelled":
            return False
        return outcome not in ("stop", "length") or (self.rule is not None and not self.rule.accepts(text))


def needs_compiling(asked: CompletionParams, toolbox: Toolbox | None) -> bool:
    """Whether `promise` compiles anything for this request, and so has no place in an event loop."""
    wish = asked.thinking()
    is_bound = wish is not None and (wish.most is not None or bool(wish.wants))
    return bool(asked.rules() or toolbox or asked.canned is not None or asked.wanted().logprobs is not None or is_bound)


def output_contract(
    serving: Serving, asked: CompletionParams, toolbox: Toolbox | None, end_s: float = math.inf
) -> OutputContract:
    """Compile what `asked` wants. Raises ApiError 400 for what cannot be honoured, or a canned answer against it.

    And 503 for what is not compiled by the monotonic clock's `end_s`.
    The first constraint on an engine takes half a second, later ones milliseconds: not for an event loop.
    """
    engine = serving.engine
    param, rule = next(iter(asked.rules().items()), ("", None))
    made = None if rule is None else _compiled(engine, param, rule, end_s)
    if asked.canned is not None and toolbox is not None:
        raise ApiError(400, "fallback cannot stand in for a call of tools", param="fallback", code="invalid_value")
    said = () if toolbox is None else said_tokens(engine)
    wish = asked.thinking()
    if wish is not None and wish.most is not None:
        grammars(engine)  # reads the vocabulary, by which a thought is followed to its end
    as_json = None
    if toolbox is not None and (with_tools := toolbox.rule(rule, partial(_known, engine, end_s))):
        spelt = _own_spelling(serving, toolbox, rule, said, end_s)
        made = _compiled(engine, "tools", spelt, end_s)
        as_json = None if spelt.text == with_tools.text else partial(_compiled, engine, "tools", with_tools)
    # Where a form begins at once, what looks like a thought is part of it.
    thinks = wish is not None and (made is None or bool(wish.wants))
    return OutputContract(
        rule=made,
        toolbox=toolbox,
        is_formed=rule is not None,
        fallback=None if asked.canned is None else _canned(asked.canned, rule, made),
        vocabulary=grammars(engine).vocabulary if asked.wanted().logprobs is not None else None,
        said=(*said, *said_marks(serving.bundle, engine)) if thinks else said,
        thoughts=thought_marks(serving.bundle) if thinks else None,
        as_json=as_json,
    )


def _own_spelling(
    serving: Serving, toolbox: Toolbox, form: Rule | None, said: tuple[tuple[int, str], ...], end_s: float
) -> Rule:
    """Return the rule of `toolbox` in which calls are as the served model itself writes them."""
    engine = serving.engine
    rule = toolbox.rule(
        form,
        partial(_known, engine, end_s),
        format=call_format(serving.bundle, engine),
        said=said,
        stops=engine.stop_tokens,
    )
    assert rule is not None, "there is one in any spelling, or in none"
    return rule


def _known(engine: Engine, end_s: float, rule: Rule) -> "CompiledRule":
    try:
        return grammars(engine).compile(rule, end_s)
    except NotCompiledError as error:
        raise ApiError(503, str(error), code="form_not_ready", retry_after_s=RETRY_AFTER_S) from error


def _compiled(engine: Engine, param: str, rule: Rule, end_s: float = math.inf) -> "CompiledRule":
    try:
        return _known(engine, end_s, rule)
    except InputError as error:
        raise ApiError(400, f"{param}: {error}", param=param, code="invalid_value") from error


def _canned(given: Any, rule: Rule | None, made: "CompiledRule | None") -> str:
    """Return the text of a canned answer; under a schema a string may be the JSON text, or a value itself."""
    texts = [given] if isinstance(given, str) else [json.dumps(given, ensure_ascii=False)]
    if rule is None or made is None:
        return texts[0]
    if rule.kind in JSON_KINDS and isinstance(given, str):
        texts = [*_normalised(given), json.dumps(given, ensure_ascii=False)]
    for text in texts:
        if made.accepts(text):
            return text
    raise ApiError(
        400,
        "fallback is not an answer that the request itself allows (keys come in the schema's order)",
        param="fallback",
        code="invalid_value",
    )


def _normalised(text: str) -> list[str]:
    try:
        return [json.dumps(msgspec.json.decode(text), ensure_ascii=False)]
    except (ValueError, RecursionError):
        return []
