"""Constrained decoding (llguidance), masks over tokens: JSON Schema, JSON, a regular expression or a grammar.

llguidance does the work; this wires it to any engine's vocabulary. It fails closed: what cannot be honoured raises when
it is compiled, and a grammar that gets into trouble in the middle of an answer ends it with an error.

Its compiler goes down into rules within rules, and a stack that ends there ends the process. So rules, and what else
can lie within another, are counted before it is called, and it runs on a stack that holds several times as many.

JSON is written as `json.dumps` writes it, on one line and with the keys in the schema's order. That is how templates
and data sets spell it, and what is not the model's choice is not computed.
"""

import contextlib
import json
import math
import threading
import time
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec
import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper, grammar_from
from numpy.typing import NDArray

from fieldlm.core.errors import EngineError, InputError
from fieldlm.core.tasks import PROCESS
from fieldlm.engines import Engine
from fieldlm.engines.rules.json_numbers import DigitTable, NumberBound
from fieldlm.engines.rules.json_schema import check_repeats, checked, parts
from fieldlm.engines.rules.rule import Kind, NotCompiledError, Rule
from fieldlm.engines.rules.rule_cache import RuleCache

Floats = NDArray[np.float32]

MAX_RULE_CHARS = 256 << 10
MAX_RULES = 1000  # of a grammar; its compiler's time grows with their square
MAX_ANDS = 100  # of a grammar: texts that are several things at once; 150 take ten seconds, 200 a minute
MAX_COLONS = 5000  # of a grammar: each thing within another, in a schema inside it too, has one
STACK_BYTES = 64 << 20  # measured with llguidance 1.9: 3 KB a rule, 8 KB a $ref; taken as it is needed
COMPILING = 2  # at a time: who asks for hard ones does not take every thread
CACHED_BYTES = 1 << 20  # of rules' text per engine; compiled, a list of words takes about thirty times its text


class TokenGuide:
    """A `Guide`: the state of one answer."""

    def __init__(
        self, matcher: LLMatcher, vocabulary: int, numbers: NumberBound | None, stops: Sequence[int] = ()
    ) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._stops = list(stops)
        self._numbers = numbers
        self._mask: NDArray[np.uint32] = np.zeros((vocabulary + 31) // 32, np.uint32)

    def forced(self) -> Sequence[int]:
        """See `Guide.forced`."""
        with _no_panic():
            tokens = self._matcher.compute_ff_tokens()
        self._check()
        return tokens

    def allow(self, logits: Floats) -> Floats:
        """See `Guide.allow`. Logits may be longer than the vocabulary: embeddings are padded."""
        with _no_panic():
            self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check()
        bits = np.unpackbits(self._mask.view(np.uint8), count=self._vocabulary, bitorder="little")
        # The compiler lets the end of an answer end a text, whatever has to follow that; here nothing would.
        if self._stops and bits[self._stops].any() and not self._matcher.is_accepting():
            bits[self._stops] = 0
        allowed = np.full_like(logits, -np.inf)
        known = min(self._vocabulary, logits.size)
        np.copyto(allowed[:known], logits[:known], where=bits[:known].view(np.bool_))
        return allowed if self._numbers is None else self._numbers.limit(allowed)

    def accept(self, token: int) -> None:
        """See `Guide.accept`."""
        with _no_panic():
            is_allowed = self._matcher.consume_token(token)
        if not is_allowed:
            raise EngineError(f"the constraint does not allow token {token} here: {_line(self._matcher.get_error())}")
        if self._numbers is not None:
            self._numbers.note(token)

    @property
    def is_complete(self) -> bool:
        """See `Guide.is_complete`."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineError(f"the constraint cannot go on: {_line(self._matcher.get_error())}")


class CompiledRule:
    """A `Constraint`, compiled for one vocabulary. Safe from any thread."""

    def __init__(
        self, matcher: LLMatcher, tokenizer: LLTokenizer, digits: DigitTable, rule: Rule, stops: Sequence[int]
    ) -> None:
        self._matcher = matcher
        self._tokenizer = tokenizer
        self._digits = digits
        self._rule = rule
        self._stops = stops
        self._said = {token: text.encode() for token, text in rule.said}
        self._texts = {begins.encode(): ends.encode() for begins, ends in rule.texts}

    def guide(self) -> TokenGuide:
        """See `Constraint.guide`."""
        begins = self._rule.json_begins
        numbers = None
        if begins is not None:
            numbers = NumberBound(self._digits, begins.encode(), said=self._said, texts=self._texts)
        return TokenGuide(self._matcher.deep_copy(), self._tokenizer.vocab_size, numbers, self._stops)

    def accepts(self, text: str) -> bool:
        """Whether `text` is a whole answer."""
        with _no_panic():
            matcher = self._matcher.deep_copy()
            tokens = self._tokenizer.tokenize_str(text)
            return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


class Grammars:
    """Rules compiled for one engine. Safe from any thread."""

    def __init__(self, engine: Engine) -> None:
        self.vocabulary = list(engine.vocabulary())
        self._stops = sorted(engine.stop_tokens)
        words = _Words(self.vocabulary, self._stops, _tokenize(engine))
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(words), n_vocab=len(self.vocabulary), eos_token=words.special_token_ids
        )
        self._digits = DigitTable(self.vocabulary)
        self.kept = RuleCache[Rule, CompiledRule](size=lambda rule: len(rule.text), most_bytes=CACHED_BYTES)
        self._running: dict[Rule, Future[CompiledRule]] = {}
        self._lock = threading.Lock()

    def compile(self, rule: Rule, end_s: float = math.inf) -> CompiledRule:
        """Return `rule` ready to be followed; raises InputError that says what in it cannot be honoured.

        Raises NotCompiledError when that is not known at `end_s`, of the monotonic clock.
        """
        if (known := self.kept.get(rule)) is not None:
            return known
        try:
            return self._begun(rule, end_s).result(_left_s(end_s))
        except TimeoutError as error:
            raise NotCompiledError("this form takes long to compile; ask again later, or make it smaller") from error
        except EngineError as error:
            raise InputError(f"the {_NAMES[rule.kind]} no answer can follow it ({error})") from error

    def _begun(self, rule: Rule, end_s: float) -> "Future[CompiledRule]":
        """Have `rule` compiled, COMPILING at a time; who asks for one that is being compiled joins that."""
        if (running := self._running.get(rule)) is not None:
            return running
        if not _compiling.acquire(timeout=_left_s(end_s)):
            raise NotCompiledError(f"{COMPILING} other forms are being compiled and take long; ask again later")
        with self._lock:
            if (running := self._running.get(rule)) is not None:
                _compiling.release()
                return running
            done = self._running[rule] = Future[CompiledRule]()

        def end() -> None:
            with self._lock:
                del self._running[rule]
            _compiling.release()

        def run() -> None:
            try:
                done.set_result(self.kept.keep(rule, self._compile_here(rule)))
            except BaseException as error:
                done.set_exception(error)
            finally:
                end()

        try:
            _on_own_stack(run)
        except BaseException:
            end()
            raise
        return done

    def _compile_here(self, rule: Rule) -> CompiledRule:
        with _no_panic():
            if rule.kind != "json_schema":
                return self._compiled(_grammar(rule), rule)
            schema = _schema(rule)
            for text in {
                json.dumps(part, sort_keys=True): part for part in map(_text_part, parts(schema)) if part
            }.values():
                self._try_text(text)
            return self._compiled(_json_grammar(schema), rule)

    def _compiled(self, grammar: str, rule: Rule) -> CompiledRule:
        failed, complaints = LLMatcher.validate_grammar_with_warnings(grammar, self._tokenizer)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if failed or complaints or matcher.is_error():
            raise InputError(f"the {_NAMES[rule.kind]} {_reason(*complaints, matcher.get_error())}")
        compiled = CompiledRule(matcher, self._tokenizer, self._digits, rule, self._stops)
        # A schema that refers to itself alone is well formed, and yet nothing is valid under it.
        compiled.guide().allow(np.zeros(len(self.vocabulary), np.float32))
        return compiled

    def _try_text(self, part: dict[str, Any]) -> None:
        """Raise EngineError for a pattern that is too large, which shows when it is followed."""
        matcher = LLMatcher(self._tokenizer, _json_grammar({"type": "string", **part}), log_level=0)
        guide = TokenGuide(matcher, len(self.vocabulary), None)
        guide.forced()
        matcher.consume_tokens(self._tokenizer.tokenize_str('"'))
        guide.allow(np.zeros(len(self.vocabulary), np.float32))


@contextlib.contextmanager
def _no_panic() -> Generator[None]:
    """Turn a panic of llguidance, which no `except Exception` would stop, into an EngineError."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise EngineError(f"its compiler gave up: {_line(str(error))}") from error


def _left_s(end_s: float) -> float:
    return min(max(0.0, end_s - time.monotonic()), threading.TIMEOUT_MAX)


def _on_own_stack(run: Callable[[], None]) -> None:
    """Begin `run` in a thread whose stack has STACK_BYTES, whatever this one's has."""
    with _starting:
        before = threading.stack_size(STACK_BYTES)
        try:
            PROCESS.start("compile-rule", run)
        finally:
            threading.stack_size(before)


OVERLAP = "the choices of a oneOf overlap, and one answer must fit one alone; use anyOf, or tell them apart by a const"
TEXT_KEYWORDS = ("pattern", "format", "minLength", "maxLength")
_compiling = threading.BoundedSemaphore(COMPILING)
_starting = threading.Lock()
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
    """Return the compiler's text of a rule that is no schema."""
    if len(rule.text) > MAX_RULE_CHARS:
        raise InputError(f"the constraint has {len(rule.text)} characters, want at most {MAX_RULE_CHARS}")
    if rule.kind == "json_object":
        return _json_grammar(msgspec.json.decode(rule.text))
    check_repeats(rule.text)
    if rule.kind == "regex":
        return LLMatcher.grammar_from_regex(rule.text)
    _check_size(rule.text)
    try:
        return grammar_from("gbnf", rule.text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the {_NAMES[rule.kind]} {_line(str(error))}") from error


def _schema(rule: Rule) -> dict[str, Any]:
    if len(rule.text) > MAX_RULE_CHARS:
        raise InputError(f"the constraint has {len(rule.text)} characters, want at most {MAX_RULE_CHARS}")
    try:
        return checked(msgspec.json.decode(rule.text))
    except (ValueError, RecursionError) as error:
        raise InputError(f"the {_NAMES[rule.kind]} {_line(str(error))}") from error


def _json_grammar(schema: Any) -> str:
    return LLMatcher.grammar_from_json_schema(
        json.dumps(schema),
        # With its defaults an answer could be whitespace for ever, and `lenient` would ignore what it does not know.
        overrides={"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False, "lenient": False},
    )


def _check_size(grammar: str) -> None:
    """Raise InputError for more rules than the compiler's stack and anybody's patience hold."""
    if (ands := grammar.count("&")) > MAX_ANDS:
        raise InputError(f"the grammar has {ands} times &, want at most {MAX_ANDS}")
    # A rule begins on a line of its own in Lark, and has its ::= in GBNF.
    rules = max(grammar.count("::="), sum(":" in line for line in grammar.splitlines()))
    if rules > MAX_RULES or grammar.count(":") > MAX_COLONS:
        raise InputError(
            f"the grammar has {rules} rules and {grammar.count(':')} colons, want at most {MAX_RULES} and {MAX_COLONS}"
        )


def _text_part(found: tuple[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a schema says of texts, when it has a pattern; empty without one."""
    _, part = found
    return {name: part[name] for name in TEXT_KEYWORDS if name in part} if "pattern" in part else {}


def _reason(*complaints: str) -> str:
    line = _line(*complaints)
    return OVERLAP if "coerce_one_of" in line else line


def _line(*complaints: str) -> str:
    """Return the most telling line: parsers draw pictures around theirs."""
    lines = [line.strip() for line in "\n".join(complaints).splitlines() if line.strip()]
    marked = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (marked or lines or ["no reason is given"])[0]
