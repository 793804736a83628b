"""The recorder: consent is applied, text redacted and the customer's id hashed before a record reaches the disk.

Modes: `off` records nothing, `metrics` numbers only, `redacted` text of sessions with consent after redaction, `full`
the same text as it was; of sessions with consent a policy may take a share. The consent's id travels with the text.
Beside single records go sketches of latency, and sums of how often somebody disagreed by how sure the model was. Knows
nothing of HTTP: whatever has the fields of `Exchange` can be recorded.
"""

import hashlib
import hmac
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from fieldlm.core.files import disk_errors, sync_folder
from fieldlm.formats.policy import Mode
from fieldlm.formats.record import LARGE, Kind, Record, Stream
from fieldlm.formats.response_ids import KEY_BYTES
from fieldlm.hardware.board_id import boot_id
from fieldlm.hardware.clock import Clock, is_set
from fieldlm.telemetry import hard_examples
from fieldlm.telemetry.effective_policy import EffectivePolicy
from fieldlm.telemetry.prompt_context import EVENT, PromptContexts
from fieldlm.telemetry.quantile_sketch import NOT_KNOWN, Summary, Sureness
from fieldlm.telemetry.recorded_text import (
    TEXT_CHARS,
    clean_all,
    clip,
    clip_all,
    names_said,
    redacted,
    redacted_message,
    redacted_text,
    texts_in,
)
from fieldlm.telemetry.redaction.numbered import Numbered
from fieldlm.telemetry.redaction.put import Patterns, Put, plain
from fieldlm.telemetry.spool import Finish, Spool
from fieldlm.telemetry.spool_database import RESPONSES, AnsweredResponse

PROMPT_CHARS = 65_536
LABEL_CHARS = 128
SUM_S = 300.0
"""How often the sums of what happened become a record."""


class RecordedTimings(Protocol):
    """Where an answer's time went."""

    @property
    def cached_tokens(self) -> int: ...
    @property
    def forced_tokens(self) -> int: ...
    @property
    def queue_s(self) -> float: ...
    @property
    def margin(self) -> float: ...
    @property
    def min_logprob(self) -> float | None: ...


class RecordedExchange(Protocol):
    """One request and its answer, as the server saw it."""

    @property
    def id(self) -> str: ...
    @property
    def generation(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def messages(self) -> Any: ...
    @property
    def context(self) -> Mapping[str, Any]: ...
    @property
    def answer(self) -> str: ...
    @property
    def outcome(self) -> str: ...
    @property
    def timings(self) -> RecordedTimings: ...
    @property
    def started_wall_s(self) -> float: ...
    @property
    def duration_s(self) -> float: ...
    @property
    def ttft_s(self) -> float | None: ...
    @property
    def session(self) -> str | None: ...
    @property
    def consent(self) -> str | None: ...
    @property
    def route(self) -> str | None: ...
    @property
    def confidence(self) -> float | None: ...
    @property
    def is_unsure(self) -> bool | None: ...
    @property
    def adapter(self) -> str: ...
    @property
    def answered_by(self) -> str: ...
    @property
    def used_fallback(self) -> bool: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...


class Recorder:
    """Writes exchanges, feedback and events into a spool. Every method is quick and safe from any thread.

    What may be kept of a text is decided when it comes; the spool's writer redacts it, before the disk.
    """

    def __init__(
        self,
        spool: Spool,
        *,
        device: str,
        salt: bytes,
        mode: Mode = "metrics",
        consents: Iterable[str] = (),
        terms: EffectivePolicy | None = None,
    ) -> None:
        """`mode` is the most that may be told, `consents` are the terms under which text may travel.

        `terms` say both instead, where a fleet's policy has a word.
        """
        self.spool = spool
        self.device = device
        self.terms = terms or EffectivePolicy(mode, fleet="", consents=consents)
        self.salt = salt
        self.clock = Clock()
        self._boot = boot_id()
        self._contexts = PromptContexts()
        self._answered: OrderedDict[str, _Known] = OrderedDict()
        self._recent = hard_examples.RecentAnswers()
        self._summaries: dict[str, Summary] = {}
        self._summed_s = time.monotonic()
        self._lock = threading.Lock()

    def exchange(self, exchange: RecordedExchange) -> None:
        """Record one exchange; its text only with consent, in mode `redacted` or `full`."""
        mode, consent, session = self.terms.mode, self._agreed(exchange.consent), self._hash(exchange.session)
        least = exchange.timings.min_logprob
        sure = Sureness(exchange.confidence, self._recent.rank(f"{exchange.generation}:{exchange.adapter}", least))
        answered = AnsweredResponse(generation=exchange.generation, session=session, consent=consent)
        known = _Known(answered, sure)
        self._know(exchange.id, known)
        self._sum(exchange, sure)
        has_text = bool(consent) and mode in ("redacted", "full") and self._is_sampled(session or exchange.id)
        hard = hard_examples.reasons(
            is_unsure=hard_examples.is_unsure(exchange.is_unsure, sure.rank),
            outcome=exchange.outcome,
            route=exchange.route or "",
            used_fallback=exchange.used_fallback,
        )
        # Who reckons how fast it was written leaves out what a form forced: that was read.
        forced = str(exchange.timings.forced_tokens or "")
        told = (
            ("hard", ",".join(hard)),
            ("adapter", exchange.adapter),
            ("answered_by", exchange.answered_by),
            ("forced", forced),
        )
        detail = {name: word for name, word in told if word}
        if hard or has_text:
            # Of the others their sums travel: in a record of 16 bytes two more numbers are a third.
            sureness = {"min_logprob": least, "confidence": sure.confidence}
            detail |= {name: f"{value:.3g}" for name, value in sureness.items() if value is not None}
        if has_text and exchange.context:
            detail["context"] = self._tell(exchange.context, mode)
        self._append(
            "gen",
            "generation",
            _Text(exchange, mode, known, self.terms.patterns).added if has_text else None,
            wall_ms=int(exchange.started_wall_s * 1000),
            generation=answered.generation,
            model=_label(exchange.model),
            response=_label(exchange.id),
            session=answered.session,
            consent=consent,
            route=_label(exchange.route),
            outcome=_label(exchange.outcome),
            prompt_tokens=exchange.prompt_tokens,
            completion_tokens=exchange.completion_tokens,
            cached_tokens=exchange.timings.cached_tokens,
            queue_ms=_ms(exchange.timings.queue_s),
            ttft_ms=_ms(exchange.ttft_s),
            duration_ms=_ms(exchange.duration_s),
            margin=round(float(exchange.timings.margin), 2),
            detail=detail,
        )

    def feedback(self, response: str, rating: str | None, correction: str | None) -> bool:
        """Record what a customer thought of a response; False when this device gave no such response, or forgot it.

        The correction travels as text does: with the consent that the exchange had.
        """
        known = self._find(response)
        if known is None:
            return False
        mode, answered, patterns = self.terms.mode, known.answered, self.terms.patterns
        if correction is not None or rating == "down":
            self._summary(answered.generation).disputed(known.sure)
        sampled = self._is_sampled(answered.session or response)
        has_text = bool(self._agreed(answered.consent) and correction) and mode in ("redacted", "full") and sampled

        def add(record: Record) -> Record:
            text = clip(redacted_text(correction or "", mode, known.names, patterns, known.put))
            return msgspec.structs.replace(record, correction=text)

        self._append(
            "fb",
            "feedback",
            add if has_text else None,
            generation=answered.generation,
            response=_label(response),
            session=answered.session,
            consent=answered.consent,
            rating=_label(rating),
            # Without consent the text stays here, but that there was one is worth knowing.
            detail={"corrected": "yes"} if correction is not None else {},
        )
        return True

    def forget(self, session: str) -> None:
        """Delete what the spool holds of a customer, and ask the store to do the same; in mode `off` only the former.

        The record goes to the disk at once; with its transaction everything that came before it is gone from there.
        """
        hashed = self._hash(session)
        with self._lock:
            for response in [name for name, known in self._answered.items() if known.answered.session == hashed]:
                del self._answered[response]
        self._append("fb", "forget", session=hashed, always=True)

    def update(self, event: str, **detail: object) -> None:
        """Record a step of an update; it goes to the disk at once."""
        self._append("ota", "update", detail={"event": event} | _details(detail))

    def system(self, event: str, **detail: object) -> None:
        """Record something about the device itself."""
        self._append("sys", "system", detail={"event": event} | _details(detail))

    def sum_up(self) -> None:
        """Record the sketches and sums of each generation since the last time; happens by itself every SUM_S."""
        with self._lock:
            summaries, self._summaries = self._summaries, {}
            self._summed_s = time.monotonic()
        for generation, summary in summaries.items():
            self._append("sys", "sketch", generation=generation, detail=summary.detail())

    def _append(
        self, stream: Stream, kind: Kind, finish: Finish | None = None, *, always: bool = False, **fields: Any
    ) -> None:
        if self.terms.mode == "off" and not always:
            return
        self.clock.look()
        wall_ms = time.time_ns() // 1_000_000
        mono_ms = time.monotonic_ns() // 1_000_000
        started_ms = fields.pop("wall_ms", wall_ms)
        record = Record(
            device=self.device,
            stream=stream,
            kind=kind,
            wall_ms=started_ms,
            mono_ms=mono_ms - (wall_ms - started_ms),
            boot=self._boot,
            clock_ok=is_set(wall_ms),
            **fields,
        )
        self.spool.append(record, finish)

    def _hash(self, session: str | None) -> str:
        if not session:
            return ""
        return hmac.new(self.salt, session.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:16]

    def _tell(self, context: Mapping[str, Any], mode: Mode) -> str:
        """Record what stood around the messages, unless it was; returns its digest."""
        digest, is_new = self._contexts.meet(context, mode)
        patterns = self.terms.patterns

        def add(record: Record) -> Record:
            told = redacted(dict(context), patterns=patterns) if mode == "redacted" else dict(context)
            text = msgspec.json.encode(told).decode()
            return msgspec.structs.replace(record, detail=record.detail | {"context": text})

        if is_new:
            self._append("sys", "system", add, detail={"event": EVENT, "digest": digest})
        return digest

    def _agreed(self, consent: str | None) -> str:
        """Return the term that a customer has agreed to. A word that the owner did not list ("no", "false") is none."""
        return _label(consent) if _label(consent) in self.terms.consents else ""

    def _is_sampled(self, session: str) -> bool:
        """Say whether the texts of a session travel: all of a conversation or nothing, now and after a restart."""
        place = int(hashlib.sha256(session.encode("utf-8", "replace")).hexdigest()[:8], 16) / (1 << 32)
        return place < self.terms.policy.sample

    def _sum(self, exchange: RecordedExchange, sure: Sureness) -> None:
        if self.terms.mode == "off" or exchange.route == LARGE:
            return
        numbers = {"ttft_ms": _ms(exchange.ttft_s)} if exchange.ttft_s is not None else {}
        numbers |= {"duration_ms": _ms(exchange.duration_s), "completion_tokens": float(exchange.completion_tokens)}
        self._summary(exchange.generation).answered(sure, **numbers)
        if time.monotonic() - self._summed_s > SUM_S:
            self.sum_up()

    def _summary(self, generation: str) -> Summary:
        with self._lock:
            return self._summaries.setdefault(generation, Summary())

    def _know(self, response: str, known: "_Known") -> None:
        with self._lock:
            self._answered[_label(response)] = known
            while len(self._answered) > RESPONSES:
                self._answered.popitem(last=False)

    def _find(self, response: str) -> "_Known | None":
        """Look in memory, which also has the names to redact, then in the spool, which survives a restart."""
        with self._lock:
            known = self._answered.get(_label(response))
        if known:
            return known
        stored = self.spool.response(_label(response))
        return _Known(stored) if stored else None


@dataclass
class _Known:
    """What feedback has to know of a response; `names` are there once the writer has read the text."""

    answered: AnsweredResponse
    sure: Sureness = NOT_KNOWN
    names: frozenset[str] = frozenset()
    put: Put = plain
    """Numbers the placeholders as the exchange did; after a restart nobody knows who was whom."""


@dataclass(frozen=True)
class _Text:
    """The text of one exchange, added to its record by the spool's writer."""

    exchange: RecordedExchange
    mode: Mode
    known: _Known
    patterns: Patterns

    def added(self, record: Record) -> Record:
        if self.mode == "redacted":
            self.known.names = names_said(self.exchange.messages, self.exchange.answer)
        self.known.put = Numbered()
        prompt, is_cut = self._prompt()
        answer = clip(redacted_text(self.exchange.answer, self.mode, self.known.names, self.patterns, self.known.put))
        detail = record.detail | ({"cut": "yes"} if is_cut or len(self.exchange.answer) > TEXT_CHARS else {})
        detail |= {"redacted": "yes"} if self.mode == "redacted" else {}
        return msgspec.structs.replace(record, prompt=prompt, answer=answer, detail=detail)

    def _prompt(self) -> tuple[str, bool]:
        """Return the messages as JSON, without the oldest ones after the first when they are too long together.

        Says too whether that, or a text's length, has cost anything of them.
        """
        kept: list[Any] = [clean_all(message) for message in self.exchange.messages]
        is_cut = any(len(text) > TEXT_CHARS for text in texts_in(self.exchange.messages))
        if self.mode == "redacted":
            kept = [redacted_message(message, self.known.names, self.patterns, self.known.put) for message in kept]
        kept = [clip_all(message) for message in kept]
        while len(text := msgspec.json.encode(kept).decode()) > PROMPT_CHARS and len(kept) > 1:
            del kept[1 if len(kept) > 2 else 0]
        return text, is_cut or len(kept) < len(self.exchange.messages)


def load_salt(path: Path) -> bytes:
    """Return the device's secret for hashing sessions, made at the first call; only its owner can read it."""
    with disk_errors(path):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{os.getpid()}.part")
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            sync_folder(path.parent)
        return path.read_bytes()


def id_key(salt: bytes) -> bytes:
    """Return the key of the device's response ids; it travels, and says nothing of the salt that it is made from."""
    return hmac.new(salt, b"response ids", hashlib.sha256).digest()[:KEY_BYTES]


def _label(text: str | None) -> str:
    return (text or "").encode("utf-8", "replace").decode()[:LABEL_CHARS]


def _ms(seconds: float | None) -> float:
    return round(float(seconds or 0.0) * 1000, 1)


def _details(detail: dict[str, object]) -> dict[str, str]:
    return {key: clip(str(value)) for key, value in detail.items()}
