"""Constrained decoding (llguidance), masks over tokens: JSON Schema, JSON, a regular expression or a grammar.

llguidance does the work; this wires it to any engine's vocabulary. It fails closed: what cannot be honoured raises when
it is compiled, and a grammar that gets into trouble in the middle of an answer ends it with an error.

JSON is written as `json.dumps` writes it, on one line and with the keys in the schema's order. That is how templates
and data sets spell it, and what is not the model's choice is not computed.
"""

import json
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import msgspec
import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper, grammar_from
from numpy.typing import NDArray

from fieldlm.core.errors import EngineError, InputError
from fieldlm.engines import Engine
from fieldlm.engines.json_schema import check_repeats, checked

Kind = Literal["json_schema", "json_object", "regex", "grammar"]
Floats = NDArray[np.float32]

MAX_RULE_CHARS = 256 << 10
CACHED = 64  # compiled grammars per engine
JSON_OBJECT = '{"type":"object"}'


@dataclass(frozen=True)
class Rule:
    """What an answer has to look like: a schema as JSON text, a regular expression, or a Lark or GBNF grammar."""

    kind: Kind
    text: str = JSON_OBJECT


class TokenGuide:
    """A `Guide`: the state of one answer."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._mask: NDArray[np.uint32] = np.zeros((vocabulary + 31) // 32, np.uint32)

    def forced(self) -> Sequence[int]:
        """See `Guide.forced`."""
        tokens = self._matcher.compute_ff_tokens()
        self._check()
        return tokens

    def allow(self, logits: Floats) -> Floats:
        """See `Guide.allow`. Logits may be longer than the vocabulary: embeddings are padded."""
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check()
        bits = np.unpackbits(self._mask.view(np.uint8), count=self._vocabulary, bitorder="little")
        allowed = np.full_like(logits, -np.inf)
        known = min(self._vocabulary, logits.size)
        np.copyto(allowed[:known], logits[:known], where=bits[:known].view(np.bool_))
        return allowed

    def accept(self, token: int) -> None:
        """See `Guide.accept`."""
        if not self._matcher.consume_token(token):
            raise EngineError(f"the constraint does not allow token {token} here: {_line(self._matcher.get_error())}")

    @property
    def is_complete(self) -> bool:
        """See `Guide.is_complete`."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineError(f"the constraint cannot go on: {_line(self._matcher.get_error())}")


class CompiledRule:
    """A `Constraint`, compiled for one vocabulary. Safe from any thread."""

    def __init__(self, matcher: LLMatcher, tokenizer: LLTokenizer) -> None:
        self._matcher = matcher
        self._tokenizer = tokenizer

    def guide(self) -> TokenGuide:
        """See `Constraint.guide`."""
        return TokenGuide(self._matcher.deep_copy(), self._tokenizer.vocab_size)

    def accepts(self, text: str) -> bool:
        """Whether `text` is a whole answer."""
        matcher = self._matcher.deep_copy()
        tokens = self._tokenizer.tokenize_str(text)
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


class Grammars:
    """Rules compiled for one engine. Safe from any thread."""

    def __init__(self, engine: Engine) -> None:
        self.vocabulary = list(engine.vocabulary())
        words = _Words(self.vocabulary, sorted(engine.stop_tokens), _tokenize(engine))
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(words), n_vocab=len(self.vocabulary), eos_token=words.special_token_ids
        )
        self.compile = lru_cache(CACHED)(self._compile)

    def _compile(self, rule: Rule) -> CompiledRule:
        """Return `rule` ready to be followed; raises InputError that says what in it cannot be honoured."""
        grammar = _grammar(rule)
        failed, complaints = LLMatcher.validate_grammar_with_warnings(grammar, self._tokenizer)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if failed or complaints or matcher.is_error():
            raise InputError(f"the {_NAMES[rule.kind]} {_line(*complaints, matcher.get_error())}")
        compiled = CompiledRule(matcher, self._tokenizer)
        try:
            # A schema that refers to itself alone is well formed, and yet nothing is valid under it.
            compiled.guide().allow(np.zeros(len(self.vocabulary), np.float32))
        except EngineError as error:
            raise InputError(f"the {_NAMES[rule.kind]} no answer can follow it ({error})") from error
        return compiled


_known: "weakref.WeakKeyDictionary[Engine, Grammars]" = weakref.WeakKeyDictionary()
_making = threading.Lock()
_NAMES: dict[Kind, str] = {
    "json_schema": "schema cannot be honoured:",
    "json_object": "JSON grammar is broken:",
    "regex": "regular expression cannot be honoured:",
    "grammar": "grammar cannot be honoured:",
}


def grammars(engine: Engine) -> Grammars:
    """Return the grammars of `engine`; the first call reads its whole vocabulary, half a second of work."""
    with _making:
        found = _known.get(engine)
        if found is None:
            found = _known[engine] = Grammars(engine)
        return found


class _Words:
    """A vocabulary in the form that llguidance asks for."""

    def __init__(self, tokens: list[bytes], stops: list[int], tokenize: Callable[[str], list[int]]) -> None:
        if not stops:
            raise EngineError("this model has no token that ends an answer, so none can be held to a form")
        self.tokens = tokens
        self.special_token_ids = stops
        self.eos_token_id = stops[0]
        self.bos_token_id = None
        self._tokenize = tokenize
        # The first of several tokens with the same bytes; a special one has none.
        self._ids = {piece: token for token, piece in reversed(list(enumerate(tokens))) if piece}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: str | bytes) -> list[int]:
        """Return tokens that spell exactly `text`: the model's own where they do, else the longest that fit."""
        data = text if isinstance(text, bytes) else text.encode()
        # What raises here would end the process: it is called from Rust. A tokenizer may add a space, or see a special
        # token in a schema's text.
        try:
            tokens = self._tokenize(data.decode())
            if b"".join(self.tokens[token] for token in tokens) == data:
                return tokens
        except Exception:
            pass
        return self._greedy(data)

    def _greedy(self, data: bytes) -> list[int]:
        tokens: list[int] = []
        while data:
            lengths = range(min(self._longest, len(data)), 0, -1)
            piece = next((data[:length] for length in lengths if data[:length] in self._ids), None)
            if piece is None:
                break
            tokens.append(self._ids[piece])
            data = data[len(piece) :]
        return tokens


def _tokenize(engine: Engine) -> Callable[[str], list[int]]:
    """Return the engine's tokenizer without keeping the engine: its grammars live as long as it does."""
    reference = weakref.ref(engine)

    def tokenize(text: str) -> list[int]:
        alive = reference()
        return list(alive.tokenize(text)) if alive is not None else []

    return tokenize


def _grammar(rule: Rule) -> str:
    if len(rule.text) > MAX_RULE_CHARS:
        raise InputError(f"the constraint has {len(rule.text)} characters, want at most {MAX_RULE_CHARS}")
    if rule.kind in ("regex", "grammar"):
        check_repeats(rule.text)
    if rule.kind == "regex":
        return LLMatcher.grammar_from_regex(rule.text)
    try:
        if rule.kind == "grammar":
            return grammar_from("gbnf", rule.text)
        schema = msgspec.json.decode(rule.text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the {_NAMES[rule.kind]} {_line(str(error))}") from error
    schema = checked(schema) if rule.kind == "json_schema" else schema
    return LLMatcher.grammar_from_json_schema(
        json.dumps(schema),
        # With its defaults an answer could be whitespace for ever, and `lenient` would ignore what it does not know.
        overrides={"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False, "lenient": False},
    )


def _line(*complaints: str) -> str:
    """Return the most telling line: parsers draw pictures around theirs."""
    lines = [line.strip() for line in "\n".join(complaints).splitlines() if line.strip()]
    marked = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (marked or lines or ["no reason is given"])[0]
